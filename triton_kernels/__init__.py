"""Triton kernels, installed as ``attrdrop.triton_kernels`` (a top-level module of that name would be OpenAI's)."""
