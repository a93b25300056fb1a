"""Commands about agents: which there are, what they can do, how they are, and their contracts."""
