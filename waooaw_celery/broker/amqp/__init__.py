"""Kombu's transport for RabbitMQ with the same guard as on Redis."""
