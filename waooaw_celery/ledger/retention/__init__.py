"""Retention: purges, legal holds and erasure."""
