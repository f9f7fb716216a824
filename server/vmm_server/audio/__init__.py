"""Sound in, text out, and the other way round: all of it that needs no model."""
