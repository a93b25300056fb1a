"""What may stand in a log: every text is escaped, and payloads are hidden."""
