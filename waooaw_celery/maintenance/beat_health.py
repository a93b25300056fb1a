"""Serves the health of `celery beat` on ``waooaw_health_port``."""

from __future__ import annotations

import time
from typing import Any

from celery import signals

from waooaw_celery.broker.dead_letters.storage import BROKER_ERRORS
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.queues import queue_depth, system_queue
from waooaw_celery.monitoring.http_server import MonitoringServer, health_reply

#: The longest pause between two looks at the schedule, in seconds, if the project sets none. Celery's is 300.
MAX_LOOP_INTERVAL = 30
#: Seconds that a look may be late before beat does not count as live.
MAX_LATE_SECONDS = 60.0
#: Seconds within which the broker must answer.
BROKER_SECONDS = 3.0


def serve_health(app: Any) -> None:
    """Have beat serve its health, if ``waooaw_health_port`` is set.

    Args:
        app: the application, an AgentApp.
    """
    if not app.conf.beat_max_loop_interval:
        app.conf.beat_max_loop_interval = MAX_LOOP_INTERVAL
    signals.beat_init.connect(_start, weak=False, dispatch_uid="waooaw.beat_health")


def _start(sender: Any, **_: Any) -> None:
    """Start the server in beat's process.

    Raises:
        SystemExit: the port is taken.
    """
    settings = getattr(sender.app, "settings", None)
    if settings is None or settings.health_port is None:
        return
    routes = {
        "/health/live": lambda: health_reply(live_problems(sender)),
        "/health/ready": lambda: health_reply(late_look(sender) | broker_problem(sender.app)),
    }
    try:
        server = MonitoringServer(routes, settings.health_port, settings.health_host)
    except ConfigurationError as error:
        raise SystemExit(f"Error: {error}") from error
    server.start()


def live_problems(service: Any) -> dict[str, str]:
    """Return why beat does not look at its schedule; empty: it does, or it waits for the broker."""
    late = late_look(service)
    # A new beat would wait for the broker too.
    return {} if late and broker_problem(service.app) else late


def late_look(service: Any) -> dict[str, str]:
    """Return that beat has not looked at its schedule in time; empty: it has.

    The schedule itself belongs to beat's thread: its file must not be read from another one. Celery keeps the time
    of the last look for its own remote control.

    Args:
        service: beat, a ``celery.beat.Service``.
    """
    looked_at, interval = service._last_tick, service.effective_max_interval
    if looked_at is None:  # it has just started
        return {}
    late = time.monotonic() - looked_at - (interval or MAX_LOOP_INTERVAL)
    if late <= MAX_LATE_SECONDS:
        return {}
    return {"schedule": f"beat should have looked at its schedule {late:.0f} s ago"}


def broker_problem(app: Any) -> dict[str, str]:
    """Return why the broker does not answer; empty: it does."""
    try:
        with app.connection_for_write() as connection:  # it has deadlines
            connection.ensure_connection(max_retries=1, timeout=BROKER_SECONDS)
            queue_depth(connection, system_queue())
    except BROKER_ERRORS as error:
        return {"broker": f"{type(error).__name__}: {error}"}
    return {}
