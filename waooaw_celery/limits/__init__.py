"""Rate limits: how much an agent may send, counted in one place for all processes."""
