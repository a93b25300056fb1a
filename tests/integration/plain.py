"""A plain Celery application, on Kombu's transport or on ours: TRANSPORT says which, SETTINGS the rest."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from redis import Redis

from waooaw_celery.broker.connection import ClaimConnection
from waooaw_celery.store.connection import store_url


class ClaimingAMQP(AMQP):
    """Celery's messages, on our transport."""

    Connection = ClaimConnection


def make_app(transport: str, url: str, **settings: Any) -> Celery:
    """Return an application whose tasks note what they do in the list ``effects:<queue>`` of the server."""
    app = Celery("plain", broker=url, amqp=ClaimingAMQP if transport == "ours" else AMQP, set_as_current=False)
    app.conf.update(
        {
            "broker_connection_retry_on_startup": True,
            "task_acks_late": True,
            "task_ignore_result": True,
            "worker_prefetch_multiplier": 1,
        }
        | settings
    )

    def note(request: Any, what: str, label: Any) -> None:
        fact = {
            "what": what,
            "label": label,
            "worker": request.hostname,
            "pid": os.getpid(),
            "parent": os.getppid(),
            "redelivered": bool(request.delivery_info["redelivered"]),
            "count": getattr(request, "x-delivery-count", None),
            "at": time.monotonic(),
        }
        # Not over a line that a test lets go dead: its tasks would fail for that.
        with Redis.from_url(store_url(os.environ.get("EFFECTS_URL", url))) as client:
            client.rpush(f"effects:{app.conf.task_default_queue}", json.dumps(fact))

    @app.task(name="plain.work", bind=True, shared=False)
    def work(self: Any, label: Any, seconds: float = 0.0) -> None:
        note(self.request, "began", label)
        time.sleep(seconds)
        note(self.request, "ended", label)

    @app.task(name="plain.spread", shared=False)
    def spread(labels: list[Any]) -> None:
        for label in labels:
            work.delay(label)

    return app


if "TRANSPORT" in os.environ:
    app = make_app(
        os.environ["TRANSPORT"], os.environ["CELERY_BROKER_URL"], **json.loads(os.environ.get("SETTINGS", "{}"))
    )
