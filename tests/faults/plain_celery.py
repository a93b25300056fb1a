"""The plain Celery application that the product is compared with: Kombu's own transport, late acknowledgement.

Signal handlers write its audit to the same PostgreSQL server at once. Recovery is configured to be as fast as
possible, so that a message that is still missing after a while is lost, and not late.
"""

from __future__ import annotations

import os
from typing import Any

import psycopg2  # type: ignore[import-untyped]
from celery import Celery, signals

from faults.effects import act

TABLES = (
    "CREATE TABLE IF NOT EXISTS plain_messages (id text PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS plain_events (id text, event text, at timestamptz DEFAULT now())",
)
#: Dispatch id of the signal receiver in the driver, which is disconnected at the end.
UID = "faults.plain_celery"
_connections: dict[int, Any] = {}


def make_app(name: str, broker_url: str, database_url: str, lease: float) -> Celery:
    """Return the application.

    Args:
        name: name of its queue and of its task.
        broker_url: URL of the broker.
        database_url: URL of its audit.
        lease: visibility timeout on Redis, in seconds.
    """
    app = Celery("plain", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_default_queue=name,
        task_acks_late=True,
        task_ignore_result=True,
        broker_connection_retry_on_startup=True,
    )
    if broker_url.startswith("redis"):
        # If a worker is killed while it restores messages, its lock would stop the others for five minutes.
        app.conf.broker_transport_options = {
            "visibility_timeout": lease,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 3,
        }

    @app.task(name=name, bind=True, shared=False)
    def command(self: Any, payload: Any = None) -> None:
        """Do what the payload asks for."""
        act(payload, self.request)

    def write(statement: str, id_: str) -> None:
        url = database_url.replace("+psycopg2", "")
        connection = _connections.get(os.getpid())
        if connection is None or connection.closed:
            connection = _connections[os.getpid()] = psycopg2.connect(url)
            connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, (id_,))

    def on_publish(headers: Any, **_: Any) -> None:
        write("INSERT INTO plain_messages VALUES (%s) ON CONFLICT DO NOTHING", headers["id"])

    def on_end(event: str) -> Any:
        def receiver(task_id: str | None = None, sender: Any = None, request: Any = None, **_: Any) -> None:
            id_ = task_id or getattr(request, "id", None) or sender.request.id
            write(f"INSERT INTO plain_events VALUES (%s, '{event}')", id_)

        return receiver

    signals.before_task_publish.connect(on_publish, weak=False, dispatch_uid=UID)
    signals.task_success.connect(on_end("handled"), weak=False)
    signals.task_failure.connect(on_end("failed"), weak=False)
    signals.task_revoked.connect(on_end("expired"), weak=False)
    return app


if "FAULTS_NAME" in os.environ:
    os.environ["FAULTS_WORKER"] = str(os.getpid())
    app = make_app(
        os.environ["FAULTS_NAME"],
        os.environ["CELERY_BROKER_URL"],
        os.environ["FAULTS_DATABASE"],
        float(os.environ["FAULTS_LEASE"]),
    )
