"""Decoders on the CPU by kernels of our own: Numba compiles them for the machine they run on."""
