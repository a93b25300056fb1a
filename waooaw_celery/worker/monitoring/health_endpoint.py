"""Serves a worker's `/health/live`, `/health/ready` and `/metrics` on ``waooaw_health_port``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.concurrency.prefork import TaskPool as ProcessPool
from celery.signals import task_postrun, worker_process_shutdown

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.monitoring.http_server import MonitoringServer, Reply, health_reply
from waooaw_celery.monitoring.metrics.process_metrics import process_metrics, start_metrics
from waooaw_celery.monitoring.metrics.prometheus import has_library, text_of
from waooaw_celery.worker.execution.event_loop import blocked_seconds
from waooaw_celery.worker.health.watchdog import Watchdog
from waooaw_celery.worker.monitoring.readiness import Readiness
from waooaw_celery.worker.monitoring.worker_gauges import worker_gauges

logger = get_logger(__name__)

#: Seconds for which an event loop may not turn before the worker does not count as live.
MAX_SILENT_SECONDS = 10.0


class HealthEndpoint(bootsteps.StartStopStep):
    """Bootstep of the worker that serves its health and its metrics from its main process."""

    requires = (Watchdog,)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._server: MonitoringServer | None = None
        self._readiness: Readiness | None = None

    def create(self, parent: Any) -> None:
        """Take the port, and let the processes of the pool report what they count.

        Raises:
            SystemExit: the port is taken.
        """
        settings = parent.app.settings
        if settings.health_port is None:
            return
        routes = {"/health/live": self._live(parent), "/health/ready": self._ready(parent)}
        metrics = start_metrics()
        if issubclass(parent.pool_cls, ProcessPool):
            metrics.open_pipe()
            task_postrun.connect(_send_metrics, weak=False, dispatch_uid="waooaw.send_metrics")
            worker_process_shutdown.connect(_send_metrics, weak=False, dispatch_uid="waooaw.send_metrics")
        if has_library():
            ready = routes["/health/ready"]
            routes["/metrics"] = text_of(metrics, worker_gauges(parent, lambda: ready().status == 200))
        try:
            self._server = MonitoringServer(routes, settings.health_port, settings.health_host)
        except ConfigurationError as error:
            raise SystemExit(f"Error: {error}") from error
        parent.heartbeat_report.add("health_port", lambda: self._server and self._server.port)

    def start(self, parent: Any) -> None:
        """Begin to answer."""
        if self._server is not None:
            self._readiness = Readiness(parent)
            self._server.start()
            logger.info(
                "health and metrics are served on port %d", self._server.port, extra={"action": "health_served"}
            )

    def stop(self, parent: Any) -> None:
        """Give the port back."""
        server, self._server = self._server, None
        if self._readiness is not None:
            self._readiness.end()
        if server is not None:
            server.stop()

    def terminate(self, parent: Any) -> None:
        """Give the port back in a cold shutdown too."""
        self.stop(parent)

    def _live(self, parent: Any) -> Callable[[], Reply]:
        def live() -> Reply:
            found = parent.watchdog.problems(MAX_SILENT_SECONDS)
            if self._readiness is not None and self._readiness.broker_is_away():
                found.pop("consumer", None)  # the loop waits for the broker, and a new worker would wait too
            blocked = blocked_seconds()
            if blocked > MAX_SILENT_SECONDS:
                found["handlers"] = f"a handler has blocked the event loop of the handlers for {blocked:.0f} s"
            return health_reply(found)

        return live

    def _ready(self, parent: Any) -> Callable[[], Reply]:
        def ready() -> Reply:
            found = parent.watchdog.problems(MAX_SILENT_SECONDS)
            if parent.watchdog.is_ending():
                found["draining"] = "the worker ends, or has not started yet"
            if self._readiness is not None:
                found |= self._readiness.problems()
            return health_reply(found)

        return ready


def _send_metrics(**_: Any) -> None:
    metrics = process_metrics()
    if metrics is not None:
        metrics.send()
