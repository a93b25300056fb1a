"""How fast messages are sent: with the ledger and without, against plain Celery and single commits.

python -m benchmarks.sending [--rounds 7]

One process on an embedded Valkey and an embedded PostgreSQL with its default durability. In each round every
subject works for half a second, in an order that is reversed each time; the medians of the rounds are compared.
Computers differ and have neighbours: only the ratios of one run mean something.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg2  # type: ignore[import-untyped]
from celery import Celery
from sqlalchemy.engine import make_url

from benchmarks.report import Goal, report
from waooaw_celery import Message, MessageBus, create_app
from waooaw_celery.embedded import postgres, valkey
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database

#: About 365 bytes of JSON, as a task for an agent might be.
PAYLOAD = {
    "task_id": "7f9c2ba4-e88f-4a3a-b0a4-2f1d6c1a9e77",
    "kind": "summarise",
    "documents": [f"s3://bucket/team/{number}/document.pdf" for number in range(4)],
    "options": {"language": "en", "max_words": 250, "style": "bullet points", "citations": True},
    "requested_by": {"name": "dashboard", "user": "ada.lovelace", "tenant": "research"},
}
#: Messages handed to ``send_many`` at once.
MANY = 1000
SECONDS = 0.5

Subject = Callable[[], int]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with valkey() as redis_url, postgres() as database_url, ExitStack() as stack:
        rates = measure(make_subjects(redis_url, database_url, stack), rounds)
    commits, plain = rates["psycopg2: one row, one commit"], rates["send, no ledger"]
    report(
        "Sending",
        rates,
        base="Celery .delay",
        goals=[
            Goal(
                "send, strict / min(commit, send without ledger)", rates["send, strict"] / min(commits, plain), 0.8
            ),
            Goal("send, batched / send without ledger", rates["send, batched"] / plain, 0.75),
            Goal("send_many, strict / Celery .delay", rates["send_many, strict"] / rates["Celery .delay"], 5.0),
        ],
    )


def make_subjects(redis_url: str, database_url: str, stack: ExitStack) -> dict[str, Subject]:
    """Return what is measured: each does something once and returns how many messages or rows that were."""
    settings: dict[str, Any] = {"broker_url": redis_url, "result_backend": redis_url, "waooaw_sender": "bench"}
    schema.upgrade(Database(make_url(database_url)))

    def bus(**more: object) -> MessageBus:
        app = stack.enter_context(closing(create_app(**(settings | more))))
        app.registry.declare("receiver", ["command"], "receiver@bench", lifetime=3600)
        return MessageBus(app)

    strict = bus(waooaw_database_url=database_url)
    batched = bus(waooaw_database_url=database_url, waooaw_audit_mode="batched")
    without = bus()
    celery = Celery("plain", broker=redis_url)
    celery.conf.task_default_queue = "plain"

    @celery.task(name="plain.work", ignore_result=True)
    def task(payload: object) -> None:
        """Never run here."""

    def message() -> Message:
        return Message(from_agent="bench", to_agent="receiver", payload=PAYLOAD)

    def send(with_: MessageBus) -> Subject:
        return lambda: len([with_.send(message())])

    def delay() -> int:
        task.delay(PAYLOAD)
        return 1

    return {
        "Celery .delay": delay,
        "psycopg2: one row, one commit": commit_a_row(database_url),
        "send, no ledger": send(without),
        "send, strict": send(strict),
        "send, batched": send(batched),
        "send_many, no ledger": lambda: len(without.send_many(message() for _ in range(MANY))),
        "send_many, strict": lambda: len(strict.send_many(message() for _ in range(MANY))),
    }


def commit_a_row(database_url: str) -> Subject:
    """Return a subject that inserts a row such as a message's, with as many indexes, and commits it."""
    connection = psycopg2.connect(database_url.replace("+psycopg2", ""))
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE floor (id text PRIMARY KEY, correlation text, sender text, receiver text, "
            "sent_at timestamptz, payload json)"
        )
        for columns in ("correlation", "sender, sent_at", "receiver, sent_at", "sent_at, id"):
            cursor.execute(f"CREATE INDEX ON floor ({columns})")
    connection.commit()

    def once() -> int:
        id_ = str(uuid4())
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO floor VALUES (%s, %s, %s, %s, %s, %s)",
                (id_, id_, "bench", "receiver", datetime.now(UTC), json.dumps(PAYLOAD)),
            )
        connection.commit()
        return 1

    return once


def measure(subjects: dict[str, Subject], rounds: int) -> dict[str, float]:
    """Return the median rate of each subject, in messages a second."""
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    for work in subjects.values():
        work()
    for number in range(rounds):
        for name in sorted(subjects, reverse=bool(number % 2)):
            began, done = time.perf_counter(), 0
            while time.perf_counter() - began < SECONDS:
                done += subjects[name]()
            rates[name].append(done / (time.perf_counter() - began))
    return {name: statistics.median(found) for name, found in rates.items()}


if __name__ == "__main__":
    main()
