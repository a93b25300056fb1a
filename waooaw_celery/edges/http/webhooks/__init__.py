"""Webhooks: events go out to URLs, signed as the Standard Webhooks specification has it."""
