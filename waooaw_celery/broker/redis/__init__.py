"""Kombu's Redis transport with an atomic claim and leases."""
