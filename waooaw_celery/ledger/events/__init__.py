"""Events in the ledger: those that were published, and the replays of them."""
