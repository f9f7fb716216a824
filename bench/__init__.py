"""Measurements of the hot paths, run by `make bench`."""
