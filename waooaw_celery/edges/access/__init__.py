"""Who speaks at an edge: the authenticated principal, the agent in whose name it sends, and what it may do."""
