"""Push notifications: a client names a URL, and the edge tells it of each change of a task."""
