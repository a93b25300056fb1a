"""How many messages wait for agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from waooaw_celery.broker.dead_letters.storage import BROKER_ERRORS
from waooaw_celery.errors import BrokerUnavailable, WaooawError
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
