"""Health: what a worker knows about its agents, and what others conclude from it."""
