"""How the ledger is read."""
