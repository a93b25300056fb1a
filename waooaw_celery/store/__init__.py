"""Who is known and what became of a message, where there is no ledger: in Redis."""
