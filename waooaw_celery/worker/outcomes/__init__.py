"""What becomes of a message after its handler: retry, requeue, dead letter, reply, follow-ups."""
