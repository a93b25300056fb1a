"""Leases: renewed while a worker lives, restored when it died."""
