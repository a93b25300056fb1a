"""Discovery: which agents can do what, how healthy they are, and which of them gets a message."""
