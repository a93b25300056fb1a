"""Handlers that are given several messages at once: how a worker collects, runs and ends a batch."""
