"""Transactions of other libraries, in which the ledger records messages."""
