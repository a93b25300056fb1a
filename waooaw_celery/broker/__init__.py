"""Kombu: how messages travel, and what a worker looks at first."""
