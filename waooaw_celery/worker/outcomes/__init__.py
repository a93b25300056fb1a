"""What happens after a handler: answer, reply, dead letter, follow-ups."""
