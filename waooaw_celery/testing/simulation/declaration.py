"""Declares the agents of an application, as the heartbeat of a worker does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from waooaw_celery.worker.discovery.agent_health import AgentHealth

#: For how long the agents count as living, in seconds: longer than a test moves its clock.
_LIFETIME = timedelta(days=3650).total_seconds()


def declare(app: Any, hostname: str) -> None:
    """Declare all agents, their handlers and subscriptions, and the schemas of the application.

    Args:
        app: the application, an AgentApp.
        hostname: the node name of its worker.

    Raises:
        SchemaConflict: two schemas of one version differ.
    """
    health = AgentHealth(app, _LIFETIME, _LIFETIME)
    started_at = app.reference_clock.now()
    app.subscriptions.declare((), app.schemas.all(), renew=True)
    for name in app.agents:
        health.look(name)
        subscribed = [each for each in app.subscribed if each.agent == name]
        app.subscriptions.declare(subscribed, renew=True)
        app.registry.declare(
            *(name, app.agents[name], hostname, _LIFETIME, health.capabilities(name), started_at),
            *(health.facts(name, started_at), health.profile(name)),
        )
    app.components.__dict__.pop("contracts", None)  # those that are known may be older
