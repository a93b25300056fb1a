"""The commands of the ledger: queries and maintenance, one conversation, and the export for an auditor."""
