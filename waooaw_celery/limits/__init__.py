"""Rate limits: how many messages an agent may send, counted across all processes."""
