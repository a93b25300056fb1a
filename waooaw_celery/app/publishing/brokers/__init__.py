"""Publishes messages with commands of the broker that Celery and Kombu do not use."""
