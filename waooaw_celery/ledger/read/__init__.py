"""Reading the ledger: records, statistics, scans, and lost messages."""
