"""What beat does: purge, sweep, recovery."""
