"""How many messages of one sender wait for an agent: counted in its queue on Redis, elsewhere in the ledger."""

from __future__ import annotations

from typing import Any

from waooaw_celery.broker.dead_letters.storage import BROKER_ERRORS
from waooaw_celery.broker.waiting.redis import RedisWaitingMessages
from waooaw_celery.errors import AuditUnavailable, ConfigurationError
from waooaw_celery.messages.queues import agent_queue


def waiting_count_of_sender(app: Any, name: str, sender: str) -> int | None:
    """Return how many messages of a sender wait for an agent; None if that cannot be read now.

    On Redis they are counted in the queue, up to a bound. RabbitMQ cannot count them: the ledger counts those that
    are open, which includes those that run, and those that are delayed.

    Args:
        app: the application, an AgentApp.
        name: the agent.
        sender: the agent that sent them.
    """
    queue = agent_queue(name).name
    if app.driver != "redis":
        from waooaw_celery.ledger.open_messages import count_open

        try:
            return count_open(app.database, name, sender)
        except AuditUnavailable:
            return None
    timeout = app.components.publish_settings.read().pool_timeout
    try:
        with app.pool.acquire(block=True, timeout=timeout) as connection, connection.channel() as channel:
            return RedisWaitingMessages(channel, app.settings.dead_letters_max).count(queue, sender)
    except BROKER_ERRORS:
        return None


def check_counts_senders(app: Any) -> None:
    """Check that the messages of one sender in a queue can be counted.

    Args:
        app: the application, an AgentApp.

    Raises:
        ConfigurationError: the broker is no Redis, and there is no ledger.
    """
    if app.driver != "redis" and not app.components.has_ledger:
        raise ConfigurationError(
            f"waooaw_max_waiting_per_sender is set, and {app.driver!r} cannot count the messages of a sender: set "
            "waooaw_database_url, use Redis or Valkey as the broker, or remove the setting"
        )
