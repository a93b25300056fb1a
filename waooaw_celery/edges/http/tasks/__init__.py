"""Calls by HTTP, and the tasks that they become."""
