"""Kombu transports: how messages travel, and how a worker checks them when they arrive."""
