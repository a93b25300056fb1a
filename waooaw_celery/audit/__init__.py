"""The ledger: every message and what became of it, in PostgreSQL (or SQLite for one computer)."""
