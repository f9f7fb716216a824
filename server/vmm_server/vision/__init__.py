"""Pictures in, answers out: all that is pure of it."""
