"""Sets up tracing in a worker whose application has ``waooaw_traces_endpoint``."""

from __future__ import annotations

from typing import Any

from celery import bootsteps, signals
from celery.concurrency.prefork import TaskPool as ProcessPool

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.monitoring.tracing.provider import check_sdk, flush, start_provider


class Tracing(bootsteps.StartStopStep):
    """Bootstep of the worker that sets up OpenTelemetry's SDK: with prefork in each process, after its fork."""

    requires = ("waooaw_celery.worker.health.heartbeat:Heartbeat",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._provider: Any = None

    def create(self, parent: Any) -> None:
        """Check that the SDK is installed, and connect what sets it up.

        Raises:
            SystemExit: it is not installed.
        """
        self._endpoint = parent.app.settings.traces_endpoint
        self._service = parent.app.main or "waooaw"
        if self._endpoint is None:
            return
        try:
            check_sdk()
        except ConfigurationError as error:
            raise SystemExit(f"Error: {error}") from error
        if issubclass(parent.pool_cls, ProcessPool):
            signals.worker_process_init.connect(self._start, weak=False, dispatch_uid="waooaw.tracing")
            signals.worker_process_shutdown.connect(self._flush, weak=False, dispatch_uid="waooaw.tracing")

    def start(self, parent: Any) -> None:
        """Set it up in this process, unless it only hands messages to a pool of processes."""
        if self._endpoint is not None and not issubclass(parent.pool_cls, ProcessPool):
            self._start()

    def stop(self, parent: Any) -> None:
        """Send the last spans."""
        self._flush()

    def terminate(self, parent: Any) -> None:
        """Send the last spans in a cold shutdown too."""
        self._flush()

    def _start(self, **_: Any) -> None:
        self._provider = start_provider(self._endpoint, self._service)

    def _flush(self, **_: Any) -> None:
        flush(self._provider)
