"""Benchmarks: one registry of ops, one CSV per device, from which every table and figure is drawn."""
