"""Fault tests: workers and servers are killed, frozen and stopped under load; then every message is counted."""
