"""Whether a worker can start, lives and makes progress."""
