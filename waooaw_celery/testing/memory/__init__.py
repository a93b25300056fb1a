"""The servers of the test harness, in the memory of its process: broker, result backend, and a ledger in SQLite."""
