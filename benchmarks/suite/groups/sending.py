"""How fast messages are sent: one by one and many at once, with the ledger and without."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg2  # type: ignore[import-untyped]
from celery import Celery
from redis import Redis

from benchmarks.payload import PAYLOAD
from benchmarks.suite.row import Context, Group, Row
from waooaw_celery import Message, MessageBus, create_app

#: Messages handed to ``send_many`` at once.
MANY = 1000
DELAY = "Celery .delay"
COMMIT = "one row, one commit"


def sending(context: Context) -> Group:
    """Return the group."""
    redis_url, database_url = context.redis_url, context.database_url
    ledger = {"waooaw_database_url": database_url}
    plain = make_bus(context)
    limited = make_bus(context, waooaw_rate_limit="1000000/second; 100000000/hour")
    batched = make_bus(context, agent="strict", **ledger, waooaw_audit_mode="batched")
    strict = make_bus(context, agent="strict", **ledger)
    one = {
        DELAY: delay(context),
        "send": send(plain),
        "send, rate limit": send(limited),
        "send, batched": send(batched, "strict"),
        "send, strict": send(strict, "strict"),
        "LPUSH loop": lpush(redis_url),
        COMMIT: commit_a_row(database_url),
    }
    many = {
        "send_many": send_many(plain),
        "send_many, strict": send_many(strict, "strict"),
        "pipeline": pipeline(redis_url, [f"many-{number % 2}" for number in range(MANY)]),
        "variadic LPUSH": variadic(redis_url),
        "COPY": copy(database_url),
    }
    peers = context.peers.rates("send")
    many_peers = context.peers.rates("send_many", count=MANY)
    subjects = {name: context.rate(work) for name, work in (one | many).items()}
    others = ("LPUSH loop", *peers)
    return Group(
        "Sending",
        subjects | dict(peers) | dict(many_peers),
        [
            Row("send one, no ledger", "send", DELAY, 3.0, others=others),
            Row("send one, rate limit on", "send, rate limit", DELAY, 2.5),
            Row("send one, ledger batched", "send, batched", DELAY, 2.5),
            Row("send one, ledger strict", "send, strict", DELAY, 0.85),
            Row("send one, ledger strict, against single commits", "send, strict", COMMIT, 0.9),
            Row(
                "send_many(1,000), no ledger",
                "send_many",
                DELAY,
                20.0,
                others=("pipeline", "variadic LPUSH", *many_peers),
            ),
            Row("send_many(1,000), ledger strict", "send_many, strict", DELAY, 12.0, others=("COPY",)),
        ],
    )


def make_bus(
    context: Context, broker_url: str | None = None, agent: str = "receiver", **settings: Any
) -> MessageBus:
    """Return a bus of an application of its own, which knows the recipient."""
    url = broker_url or context.redis_url
    app = context.stack.enter_context(
        closing(create_app(broker_url=url, result_backend=context.redis_url, waooaw_sender="bench", **settings))
    )
    app.registry.declare(agent, ["command"], "receiver@bench", lifetime=7200)
    return MessageBus(app)


def message(agent: str = "receiver") -> Message:
    """Return a new message."""
    return Message(from_agent="bench", to_agent=agent, payload=PAYLOAD)


def send(bus: MessageBus, agent: str = "receiver") -> Callable[[], int]:
    """Send one message."""
    return lambda: len([bus.send(message(agent))])


def send_many(bus: MessageBus, agent: str = "receiver") -> Callable[[], int]:
    """Send many messages at once."""
    return lambda: len(bus.send_many(message(agent) for _ in range(MANY)))


def delay(context: Context, broker_url: str | None = None, **settings: object) -> Callable[[], int]:
    """Send one task of plain Celery."""
    celery = Celery("plain", broker=broker_url or context.redis_url)
    celery.conf.update(task_default_queue="plain-sent", **settings)
    context.stack.enter_context(closing(celery))

    @celery.task(name="plain.work", ignore_result=True)
    def task(payload: object) -> None:
        """Never run here."""

    def once() -> int:
        task.delay(PAYLOAD)
        return 1

    return once


def redis_client(url: str) -> Any:
    """Return a client of redis-py."""
    return Redis.from_url(url.replace("redis+socket://", "unix://"))


def lpush(url: str) -> Callable[[], int]:
    """Push one payload: the floor of every client on Redis."""
    client, text = redis_client(url), json.dumps(PAYLOAD)
    return lambda: bool(client.lpush("floor", text)) * 1


def pipeline(url: str, lists: list[str]) -> Callable[[], int]:
    """Push a payload to each list, in one round trip."""
    client, text = redis_client(url), json.dumps(PAYLOAD)

    def once() -> int:
        with client.pipeline(transaction=False) as commands:
            for name in lists:
                commands.lpush(name, text)
            return len(commands.execute())

    return once


def variadic(url: str) -> Callable[[], int]:
    """Push many payloads with one command."""
    client, text = redis_client(url), json.dumps(PAYLOAD)

    def once() -> int:
        client.lpush("floor", *([text] * MANY))
        return MANY

    return once


def commit_a_row(database_url: str) -> Callable[[], int]:
    """Insert a row such as a message's, with as many indexes, and commit it."""
    connection = _floor_table(database_url, "floor_single")

    def once() -> int:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO floor_single VALUES (%s, %s, %s, %s, %s, %s)", _row())
        connection.commit()
        return 1

    return once


def copy(database_url: str) -> Callable[[], int]:
    """Insert many such rows with one COPY."""
    connection = _floor_table(database_url, "floor_copy")

    def once() -> int:
        text = "".join("\t".join(map(str, _row())) + "\n" for _ in range(MANY))
        with connection.cursor() as cursor:
            cursor.copy_expert("COPY floor_copy FROM STDIN", io.StringIO(text))
        connection.commit()
        return MANY

    return once


def _row() -> tuple[object, ...]:
    id_ = str(uuid4())
    return id_, id_, "bench", "receiver", datetime.now(UTC), json.dumps(PAYLOAD)


def _floor_table(database_url: str, name: str) -> Any:
    connection = psycopg2.connect(database_url.replace("+psycopg2", ""))
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {name}")  # that of another group of this run
        cursor.execute(
            f"CREATE TABLE {name} (id text PRIMARY KEY, correlation text, sender text, receiver text, "
            "sent_at timestamptz, payload json)"
        )
        for columns in ("correlation", "sender, sent_at", "receiver, sent_at", "sent_at, id"):
            cursor.execute(f"CREATE INDEX ON {name} ({columns})")
    connection.commit()
    return connection
