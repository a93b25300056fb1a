"""Checks whether a worker can start, is alive and makes progress."""
