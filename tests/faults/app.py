"""A plain Celery application on our transport. Its handlers record their effects in a file."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

from celery import Celery, Task
from celery.app.amqp import AMQP

from waooaw_celery.app.celery_defaults import CELERY_DEFAULTS, TRANSPORT_DEFAULTS
from waooaw_celery.broker.connection import ClaimConnection

QUEUE = "faults"
WORK = "faults.work"
POISON = "faults.poison"


class ClaimingAMQP(AMQP):
    """Celery's AMQP object with our transport."""

    Connection = ClaimConnection


def make_app(broker_url: str, **options: Any) -> Celery:
    """Return a plain Celery application with our transport and defaults.

    Args:
        broker_url: URL of a Redis server.
        options: transport options.
    """
    app = Celery(
        "faults",
        broker=broker_url,
        amqp=ClaimingAMQP,
        set_as_current=False,
        changes=CELERY_DEFAULTS
        | {
            "task_default_queue": QUEUE,
            "task_ignore_result": True,
            "broker_transport_options": TRANSPORT_DEFAULTS["redis"] | options,
        },
    )

    @app.task(name=WORK, bind=True, shared=False)
    def work(self: Task[Any, Any], seconds: float = 0.0) -> None:
        """Record the begin, sleep, record the end."""
        note("begun", self)
        time.sleep(seconds)
        note("done", self)

    @app.task(name=POISON, bind=True, shared=False)
    def poison(self: Task[Any, Any]) -> None:
        """Kill the worker's parent process, not only the pool process that runs this."""
        note("begun", self)
        os.kill(int(os.environ["FAULTS_WORKER"]), signal.SIGKILL)
        time.sleep(60)

    return app


def note(what: str, task: Task[Any, Any]) -> None:
    """Append a line to the file of effects in one write, so that a kill cannot split it."""
    redelivered = bool((task.request.delivery_info or {}).get("redelivered"))
    line = f"{what} {task.request.id} {os.getpid()} {time.monotonic():.6f} {int(redelivered)}\n"
    file = os.open(os.environ["FAULTS_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


if "FAULTS_OPTIONS" in os.environ:
    os.environ["FAULTS_WORKER"] = str(os.getpid())  # this module is imported by the worker before it forks
    app = make_app(os.environ["CELERY_BROKER_URL"], **json.loads(os.environ["FAULTS_OPTIONS"]))
