"""The registry of agents: which exist, what they handle, and where their workers live."""
