"""Writes rows to the ledger: in order, many in one statement, and none lost during an outage."""
