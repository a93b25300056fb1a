"""Workflows that are described as tasks with dependencies."""
