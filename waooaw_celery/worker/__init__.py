"""What happens inside an agent's worker: its tasks, its signs of life, and the record of what it handled."""
