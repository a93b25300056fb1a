"""What all processes know together about the agents that they request, in the ledger's database."""
