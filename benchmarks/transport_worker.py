"""A plain Celery worker for the transport benchmark, on Kombu's transport or on ours: see TRANSPORT."""

from __future__ import annotations

import json
import os

from celery import Celery
from celery.app.amqp import AMQP

from waooaw_celery.broker.connection import ClaimConnection


class ClaimingAMQP(AMQP):
    """Celery's AMQP with our transports."""

    Connection = ClaimConnection


def make_app(transport: str, broker_url: str, **settings: object) -> Celery:
    """Return a plain Celery application.

    Args:
        transport: ``kombu`` or ``ours``.
        broker_url: The URL of a Redis server.
        settings: Celery settings.
    """
    amqp = ClaimingAMQP if transport == "ours" else AMQP
    app = Celery("plain", broker=broker_url, amqp=amqp)
    app.conf.update(task_default_queue=f"plain-{transport}", broker_connection_retry_on_startup=True, **settings)

    @app.task(name="plain.work", ignore_result=True, shared=False)
    def work(payload: object) -> None:
        """Do nothing."""

    @app.task(name="plain.echo", shared=False)
    def echo(payload: object) -> object:
        """Return the payload."""
        return payload

    return app


if "TRANSPORT" in os.environ:
    app = make_app(
        os.environ["TRANSPORT"], os.environ["CELERY_BROKER_URL"], **json.loads(os.environ.get("SETTINGS", "{}"))
    )
