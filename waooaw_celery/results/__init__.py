"""The result backend, and who waits for it."""
