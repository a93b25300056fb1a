"""A plain Celery worker. With GUEST its module also creates an application of this package, as a sender has it."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

QUEUE = os.environ["GUEST_QUEUE"]
app = Celery("host", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
app.conf.update(task_default_queue=QUEUE, accept_content=["json", "msgpack"], worker_hijack_root_logger=False)


@app.task(name="host.measure")
def measure(value: Any) -> list[Any]:
    """Return the type of a value, and a size that tells what arrived."""
    depth = 0
    while isinstance(value, list) and len(value) == 1:
        value, depth = value[0], depth + 1
    size = len(value) if isinstance(value, str | list | dict) else str(value)
    return [type(value).__name__, size, depth]


@app.task(name="host.make")
def make(values: int) -> list[int]:
    """Return a large result."""
    return [0] * values


if os.environ.get("GUEST"):
    from waooaw_celery import AgentApp

    guest = AgentApp("guest", set_as_current=False)
    guest.conf.update(waooaw_sender="guest", waooaw_max_nodes=1000, waooaw_max_expanded_bytes=10_000)
    guest.check()
