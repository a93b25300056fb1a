"""Starts the engine of workflows in each process of a worker that handles messages."""

from __future__ import annotations

import weakref
from typing import Any

from celery import bootsteps, signals
from celery.concurrency.prefork import TaskPool as ProcessPool

from waooaw_celery.workflows.engine.engine import engine_of

#: The applications with workflows in this process.
_apps: weakref.WeakSet[Any] = weakref.WeakSet()


class RunWorkflows(bootsteps.StartStopStep):
    """Bootstep of a worker whose agents have workflows."""

    requires = ("waooaw_celery.worker.health.heartbeat:Heartbeat",)

    def create(self, parent: Any) -> None:
        """Refuse to start without a ledger, which has the journal of workflows.

        Raises:
            SystemExit: there is no ledger.
        """
        if parent.app.settings.database_url is None:
            names = ", ".join(sorted(parent.app.workflows))
            raise SystemExit(f"Error: the workflow {names} needs the ledger: set WAOOAW_DATABASE_URL")

    def start(self, parent: Any) -> None:
        """Start the engine in this process, unless it only hands messages to a pool of processes."""
        if not issubclass(parent.pool_cls, ProcessPool):
            engine_of(parent.app).start()


def add_to_worker(app: Any) -> None:
    """Let the workers of an application run its workflows; a second call changes nothing."""
    _apps.add(app)
    app.steps["worker"].add(RunWorkflows)
    signals.worker_process_init.connect(_start_in_process, weak=False, dispatch_uid="waooaw.workflows")


def _start_in_process(**_: Any) -> None:
    for app in list(_apps):
        if app.settings.database_url is not None and app.consumed_agents():
            engine_of(app).start()
