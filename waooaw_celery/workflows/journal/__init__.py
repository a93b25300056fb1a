"""The journal of workflows in the ledger's database: steps, inputs, and who owns a workflow."""
