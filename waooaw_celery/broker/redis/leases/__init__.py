"""Leases: renewed while a worker lives, and restored after it died."""
