"""Kernels to machine code: compiled, cached beside a key, and loaded without Numba."""
