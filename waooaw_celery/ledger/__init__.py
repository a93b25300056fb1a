"""The ledger: every message and what became of it."""
