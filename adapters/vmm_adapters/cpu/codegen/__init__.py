"""What is compiled: kernels in LLVM's words, and the step around them, which Numba translates.

Only the process that compiles imports this: what it makes is an object file, which `objects` loads.
"""
