"""Dead letters, on every broker."""
