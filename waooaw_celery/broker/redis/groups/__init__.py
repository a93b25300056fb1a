"""Messages of a queue grouped by sender and by key."""
