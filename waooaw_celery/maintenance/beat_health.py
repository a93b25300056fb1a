"""Serves the health of `celery beat` on ``waooaw_health_port``."""

from __future__ import annotations

from typing import Any

from celery import signals

from waooaw_celery.broker.dead_letters.storage import BROKER_ERRORS
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.queues import queue_depth, system_queue
from waooaw_celery.monitoring.http_server import MonitoringServer, health_reply

#: Seconds by which a periodic task may be late before beat does not count as live.
MAX_LATE_SECONDS = 60.0
#: Seconds within which the broker must answer.
BROKER_SECONDS = 3.0


def serve_health() -> None:
    """Have beat serve its health, if ``waooaw_health_port`` is set."""
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
        "/health/live": lambda: health_reply(late_tasks(sender.scheduler)),
        "/health/ready": lambda: health_reply(late_tasks(sender.scheduler) | broker_problem(sender.app)),
    }
    try:
        server = MonitoringServer(routes, settings.health_port, settings.health_host)
    except ConfigurationError as error:
        raise SystemExit(f"Error: {error}") from error
    server.start()


def late_tasks(scheduler: Any) -> dict[str, str]:
    """Return the periodic tasks that beat should have sent by now; empty: it is in time.

    Args:
        scheduler: beat's scheduler.
    """
    found = {}
    for name, entry in dict(scheduler.schedule).items():
        late = -entry.schedule.remaining_estimate(entry.last_run_at).total_seconds()
        if late > MAX_LATE_SECONDS:
            found[name] = f"it was due {late:.0f} s ago, and beat has not sent it"
    return found


def broker_problem(app: Any) -> dict[str, str]:
    """Return why the broker does not answer; empty: it does."""
    try:
        with app.connection_for_write() as connection:  # it has deadlines
            connection.ensure_connection(max_retries=1, timeout=BROKER_SECONDS)
            queue_depth(connection, system_queue())
    except BROKER_ERRORS as error:
        return {"broker": f"{type(error).__name__}: {error}"}
    return {}
