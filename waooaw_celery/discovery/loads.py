"""How many messages wait for agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from waooaw_celery.broker.dead_letters.storage import BROKER_ERRORS
from waooaw_celery.broker.waiting.redis import RedisWaitingMessages
from waooaw_celery.errors import AuditUnavailable, BrokerUnavailable, ConfigurationError, WaooawError
from waooaw_celery.messages.queues import agent_queue, queue_depths
from waooaw_celery.store.redis_refusals import explained


def waiting_counts(app: Any, names: list[str]) -> Mapping[str, int]:
    """Return how many messages wait for agents, by name.

    Args:
        app: the application, an AgentApp.
        names: the agents.

    Raises:
        BrokerUnavailable: the broker does not answer.
    """
    timeout = app.components.publish_settings.read().pool_timeout
    try:
        with app.pool.acquire(block=True, timeout=timeout) as connection:
            depths = queue_depths(connection, [agent_queue(name) for name in names])
    except WaooawError:  # some are a Kombu or connection error too
        raise
    except BROKER_ERRORS as error:
        unavailable = BrokerUnavailable(f"the broker does not say how much waits: {explained(error)}")
        unavailable.uncertain = False  # nothing was sent
        raise unavailable from error
    return {name: depth.total for name, depth in zip(names, depths, strict=True)}


def waiting_count(app: Any, name: str) -> int | None:
    """Return how many messages wait for an agent; None if the broker does not answer.

    Args:
        app: the application, an AgentApp.
        name: the agent.
    """
    try:
        return waiting_counts(app, [name])[name]
    except BrokerUnavailable:
        return None


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
