"""Faults of messages: malformed, of other versions, duplicated, expired, and without a recipient."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

from malformed_messages import CASES, Case, items

from faults.account import Outcome
from faults.cluster import Cluster, Worker
from faults.raw_messages import put, take
from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter
from waooaw_celery.messages.message import ENVELOPE_HEADER, LEDGER_FIELD

#: Seconds after its expiry within which a message that no worker began must be EXPIRED.
EXPIRY_DELAY = 5.0
#: Payloads that cannot be serialized, or exceed a limit.
UNSERIALIZABLE: tuple[Any, ...] = (
    float("nan"),
    {"a": float("inf")},
    "x" * (17 * 1024 * 1024),
    {"__type__": "datetime", "__value__": "x"},
    2**5000,
    {1: 2},
)
#: Texts that look dangerous and must arrive unchanged.
HOSTILE = (
    "'; DROP TABLE waooaw_messages; --",
    "a\x00b",
    "\ud800",
    "abc\n[2026-01-01 00:00:00,000: CRITICAL/MainProcess] FORGED",
    "<script>alert(1)</script>",
    "%s %(x)s {0} ${x}",
    "🤷🏽‍♀️ ﷽",
)


def malformed(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """A worker gets malformed messages of each kind: it survives, and those with an id get a final event."""
    cases: list[tuple[Case, str, bytes]] = []
    ids = [cluster.send() for _ in CASES]
    messages = {message["headers"]["id"]: message for message in take(cluster, len(ids))}
    for (case, item), id_ in zip(items(iter([messages[id_] for id_ in ids])), ids, strict=True):
        cases.append((case, id_, item))
    worker = cluster.start()
    rng.shuffle(cases)
    for case, id_, item in cases:
        is_sent = put(cluster, item)
        if not is_sent or not case.named:
            cluster.note(id_, Outcome("raw", case.label, 0.0))  # its outcome cannot be known
        if not is_sent:
            continue
        probe = cluster.send()
        try:
            cluster.until(partial(_is_answered, cluster, worker, probe), "the next message", 10)
        except AssertionError:
            cluster.expect(False, f"after {case.label!r} nothing was handled")
        if worker.process.poll() is not None:
            cluster.expect(False, f"{case.label!r} ended the worker")
            cluster.reap(worker)
            if not cluster.is_product:
                return  # plain Celery need not survive more
            worker = cluster.start()
    cluster.drain()


def _is_answered(cluster: Cluster, worker: Worker, id_: str) -> bool:
    return cluster.handled(id_) or worker.process.poll() is not None


def unserializable(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """An unserializable payload is refused by the sender; a hostile text arrives unchanged."""
    worker = cluster.start()
    refused = [cluster.send_payload(payload) for payload in UNSERIALIZABLE]
    for id_ in refused:
        cluster.expect(cluster.outcomes[id_].what == "refused", f"not refused: {cluster.outcomes[id_]}")
    arrived = [cluster.send_payload({"text": text, text: [text]}) for text in HOSTILE]
    cluster.until(lambda: cluster.handled(*arrived), "hostile texts")
    log = cluster.log(worker)
    cluster.expect(not any(line.startswith("[2026-01-01") for line in log.splitlines()), "a line was forged")


def unroutable(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """Messages to an agent that was never declared are refused, and leave nothing in a queue."""
    name, queue = cluster.stack.name, cluster.waiting()
    for _ in range(rounds):
        cluster.stack.name = f"{name}-ghost"
        try:
            id_ = cluster.send()
        finally:
            cluster.stack.name = name
        cluster.expect(cluster.outcomes[id_].what == "refused", f"it was {cluster.outcomes[id_].what}")
    cluster.expect(cluster.waiting() == queue, "it is in a queue")
    cluster.start()


def queue_deleted(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """The agent's queue is deleted after it was used: later messages are handled, or refused."""
    from kombu import Connection

    worker = cluster.start()
    for _ in range(rounds):
        cluster.send()
        cluster.drain()
        with Connection(cluster.broker.url) as connection, connection.channel() as channel:
            channel.queue_delete(cluster.stack.queue())
        for _ in range(3):
            cluster.send(ttl=5)
        if worker.process.poll() is None:
            cluster.kill(worker)
        worker = cluster.start()


def duplicated(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """Each message is in the queue twice, for two workers: it is handled once, with one final event."""
    ids = [cluster.send(seconds=0.05) for _ in range(10 * rounds)]
    messages = take(cluster, len(ids))
    for message in messages:
        for _ in range(2):
            put(cluster, json.dumps(message).encode())
    cluster.start()
    cluster.start()


def retry_dead_letters(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """Handlers are fixed and their dead letters retried: all are handled except those that still fail."""
    worker = cluster.start()
    ids = [cluster.send("fail at first") for _ in range(10 * rounds)]
    poison = [cluster.send("run out of memory") for _ in range(2 * rounds)]
    cluster.until(lambda: all(cluster.ended(id_) for id_ in [*ids, *poison]), "their final events")
    cluster.fix_handlers()
    queue = cluster.dead_letter_queue()

    def dead_letters() -> Sequence[DeadLetter]:
        return queue.list(agent=cluster.stack.name, limit=100 * rounds)

    cluster.until(lambda: len(dead_letters()) == len(ids) + len(poison), "their dead letters")
    for attempt in range(5):
        sent = [outcome.new_id for outcome in queue.retry(dead_letters()) if outcome.new_id is not None]
        for new_id in sent:
            cluster.note(new_id, Outcome("accepted", "", 0.0))
        expected = len(ids) + len(poison) if attempt == 0 else len(poison) if attempt < 3 else 0
        cluster.expect(len(sent) == expected, f"{len(sent)} dead letters were retried, not {expected}")
        cluster.until(partial(_have_ended, cluster, sent), "the final events of the retried messages")
        cluster.until(lambda: len(dead_letters()) == len(poison), "the dead letters of those that still fail")
    cluster.expect(worker.process.poll() is None, "the worker ended")


def _have_ended(cluster: Cluster, ids: Sequence[str]) -> bool:
    return all(cluster.ended(id_) for id_ in ids)


def other_versions(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """Messages of newer and older versions arrive: with unknown header fields, or without known ones."""
    ids = [cluster.send() for _ in range(10 * rounds)]
    messages = take(cluster, len(ids))
    envelope = messages[0]["headers"][ENVELOPE_HEADER]
    # Without a ledger's id, it would be the message of a sender that has no ledger, and not of another version.
    names = [name for name in envelope if name != LEDGER_FIELD] if isinstance(envelope, dict) else []
    for number, message in enumerate(messages):
        changed = deepcopy(message)
        if names and number % 2:
            changed["headers"][ENVELOPE_HEADER].pop(rng.choice(names))
        elif names:
            changed["headers"][ENVELOPE_HEADER]["of_the_future"] = {"a": [number]}
            changed["headers"]["x-of-the-future"] = number
        put(cluster, json.dumps(changed).encode())
    worker = cluster.start()
    cluster.until(lambda: all(cluster.ended(id_) for id_ in ids), "their final events")
    cluster.expect(worker.process.poll() is None, "the worker ended")


def expiry(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """Messages expire without a worker, behind others, and when they are fetched; none is handled."""
    with cluster.system():
        ids = [cluster.send(ttl=1.0) for _ in range(3 * rounds)]
        began = time.monotonic()
        cluster.until(lambda: all(cluster.ended(id_) for id_ in ids), "their ends without a worker")
        took = time.monotonic() - began
        cluster.expect(took <= 1 + EXPIRY_DELAY + 5, f"their end came after {took:.1f} s")
        cluster.start()
        for _ in range(cluster.processes):
            cluster.send(seconds=3)
        behind = [cluster.send(ttl=1.0) for _ in range(3 * rounds)]
        cluster.until(lambda: all(cluster.ended(id_) for id_ in behind), "their ends behind others")
        cluster.expect(not any(cluster.begun(id_) for id_ in [*ids, *behind]), "one was begun too late")
