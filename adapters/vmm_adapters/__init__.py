"""Adapters: the only code that imports a model runtime.

The contract is `types`, `base`, `errors`, `card` and `catalog`; it imports no runtime. One module or package beside
them binds one runtime.
"""
