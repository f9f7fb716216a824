"""Bytes that are no text → bounded arrays."""
