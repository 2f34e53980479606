"""Launches of the Triton kernels to compile ahead of time."""
