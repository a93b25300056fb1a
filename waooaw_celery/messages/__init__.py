"""What is said: messages, receipts, topics, their rules. No Celery, no server."""
