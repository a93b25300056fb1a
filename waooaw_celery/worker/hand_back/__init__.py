"""Messages that this worker has no handler for, and another worker of the same agent has."""
