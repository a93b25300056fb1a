"""Stores agents, subscriptions and receipts in Redis, for applications without a ledger."""
