"""The servers of the test harness, in the memory of its process: a broker, results, and a ledger in SQLite."""
