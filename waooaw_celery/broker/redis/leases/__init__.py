"""Leases: renewed while a worker is alive, and restored after it has died."""
