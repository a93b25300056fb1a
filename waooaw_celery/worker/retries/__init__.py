"""Whether and when a message is tried again, and what goes back to its queue."""
