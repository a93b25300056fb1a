"""The Celery application of agents, and the one way to the broker."""
