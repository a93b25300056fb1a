"""The ledger: a record of every message and of its events."""
