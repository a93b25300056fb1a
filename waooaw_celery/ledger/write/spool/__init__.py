"""The spool: a SQLite file where rows of the ledger wait while the database is down."""
