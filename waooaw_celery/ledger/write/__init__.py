"""How rows get into the ledger: in order, many at once, none lost."""
