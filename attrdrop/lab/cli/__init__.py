"""The command `attrdrop`."""
