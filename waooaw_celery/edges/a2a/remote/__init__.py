"""Outside agents that speak A2A, as agents of ours."""
