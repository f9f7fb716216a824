"""Probes: each module asks one runtime, or the system, what is there, and prints it as JSON.

They are run as `python -m vmm_adapters.probes.<name>`, in processes that may crash or hang (`probing.children`); an
error is a traceback on stderr and exit code 1.
"""
