"""What happens after a handler: retry, requeue, dead letter, reply, follow-ups."""
