"""What a worker contributes to discovery: the health of its agents, and the end of those that are drained."""
