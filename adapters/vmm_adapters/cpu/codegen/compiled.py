"""How functions of this package are compiled by Numba."""

from numba import njit

compiled = njit(nogil=True, error_model="numpy")
"""Without the interpreter's lock, and without checks that would raise: a thread that ends is waited for in vain."""
