"""Recovery: what the ledger knows as open and the broker no longer has is published again, under the same id."""
