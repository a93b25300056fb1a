"""Faults of messages: malformed, foreign, of other versions, there twice, too late, and for nobody."""

from __future__ import annotations

import json
import random
import time
from copy import deepcopy
from functools import partial
from typing import Any

from malformed import CASES, Case, items

from faults.account import Outcome
from faults.cluster import Cluster, Worker
from faults.raw_messages import put, take
from waooaw_celery.messages.message import ENVELOPE_HEADER

#: Seconds after the end of their time within which messages are EXPIRED that nobody began.
EXPIRY_DELAY = 5.0
#: What cannot travel, or would end who reads it.
UNSERIALIZABLE: tuple[Any, ...] = (
    float("nan"),
    {"a": float("inf")},
    "x" * (17 * 1024 * 1024),
    {"__type__": "datetime", "__value__": "x"},
    2**5000,
    {1: 2},
)
#: What may be in a text, and must arrive as it is.
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
    """Each way to be malformed meets a worker: it lives on, and what can be named has its end in the audit."""
    cases: list[tuple[Case, str, bytes]] = []
    ids = [cluster.send() for _ in CASES]
    messages = {message["headers"]["id"]: message for message in take(cluster, len(ids))}
    for (case, item), id_ in zip(items(iter([messages[id_] for id_ in ids])), ids, strict=True):
        cases.append((case, id_, item))
    worker = cluster.start()
    rng.shuffle(cases)
    for case, id_, item in cases:
        there = put(cluster, item)
        if not there or not case.named:
            cluster.note(id_, Outcome("raw", case.label, 0.0))  # nobody can tell what became of it
        if not there:
            continue
        probe = cluster.send()
        try:
            cluster.until(partial(_met, cluster, worker, probe), "the next message", 10)
        except AssertionError:
            cluster.expect(False, f"after {case.label!r} nothing was handled")
        if worker.process.poll() is not None:
            cluster.expect(False, f"{case.label!r} ended the worker")
            cluster.reap(worker)
            if not cluster.is_product:
                return  # enough is known
            worker = cluster.start()
    cluster.drain()


def _met(cluster: Cluster, worker: Worker, id_: str) -> bool:
    return cluster.handled(id_) or worker.process.poll() is not None


def unserializable(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """What cannot travel is refused where it is sent; what is merely hostile arrives as it is."""
    worker = cluster.start()
    refused = [cluster.send_payload(payload) for payload in UNSERIALIZABLE]
    for id_ in refused:
        cluster.expect(
            cluster.outcomes[id_].what == "refused", f"a payload that cannot travel: {cluster.outcomes[id_]}"
        )
    arrived = [cluster.send_payload({"text": text, text: [text]}) for text in HOSTILE]
    cluster.until(lambda: cluster.handled(*arrived), "hostile texts")
    log = cluster.log(worker)
    cluster.expect(not any(line.startswith("[2026-01-01") for line in log.splitlines()), "a line was forged")


def unroutable(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """Messages to an agent that nobody ever declared are refused, and nothing of them is left anywhere."""
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
    """The agent's queue is deleted after it was used: who sends is told, or it is handled."""
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
    """The same messages are in the queue twice, for two workers: each is handled once, and audited once."""
    ids = [cluster.send(seconds=0.05) for _ in range(10 * rounds)]
    messages = take(cluster, len(ids))
    for message in messages:
        for _ in range(2):
            put(cluster, json.dumps(message).encode())
    cluster.start()
    cluster.start()


def retry_dead_letters(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """Handlers are mended, and their dead letters sent again: all are handled but those that still fail."""
    worker = cluster.start()
    ids = [cluster.send("fail at first") for _ in range(10 * rounds)]
    poison = [cluster.send("run out of memory") for _ in range(2 * rounds)]
    cluster.until(lambda: all(cluster.ended(id_) for id_ in [*ids, *poison]), "their ends")
    cluster.fix_handlers()
    dead_letter_queue, mine = (
        cluster.dead_letter_queue(),
        dict[str, Any]({"agent": cluster.stack.name, "limit": 100 * rounds}),
    )
    cluster.until(lambda: len(dead_letter_queue.list(**mine)) == len(ids) + len(poison), "their dead letters")
    for attempt in range(5):
        sent = [
            outcome.new_id
            for outcome in dead_letter_queue.retry(dead_letter_queue.list(**mine))
            if outcome.new_id is not None
        ]
        for new_id in sent:
            cluster.note(new_id, Outcome("accepted", "", 0.0))
        expected = len(ids) + len(poison) if attempt == 0 else len(poison) if attempt < 3 else 0
        cluster.expect(len(sent) == expected, f"{len(sent)} letters were sent again, and not {expected}")
        cluster.until(lambda sent=sent: all(cluster.ended(id_) for id_ in sent), "the ends of the new ones")  # type: ignore[misc]
        cluster.until(
            lambda: len(dead_letter_queue.list(**mine)) == len(poison), "the letters of those that still fail"
        )
    cluster.expect(worker.process.poll() is None, "the worker came to an end")


def other_versions(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """Envelopes of newer and of older versions arrive: with fields that nobody knows, and without known ones."""
    ids = [cluster.send() for _ in range(10 * rounds)]
    messages = take(cluster, len(ids))
    envelope = messages[0]["headers"][ENVELOPE_HEADER]
    names = list(envelope) if isinstance(envelope, dict) else []
    for number, message in enumerate(messages):
        changed = deepcopy(message)
        if names and number % 2:
            changed["headers"][ENVELOPE_HEADER].pop(rng.choice(names))
        elif names:
            changed["headers"][ENVELOPE_HEADER]["of_the_future"] = {"a": [number]}
            changed["headers"]["x-of-the-future"] = number
        put(cluster, json.dumps(changed).encode())
    worker = cluster.start()
    cluster.until(lambda: all(cluster.ended(id_) for id_ in ids), "their ends")
    cluster.expect(worker.process.poll() is None, "the worker came to an end")


def expiry(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """Messages are too late: with no worker there, behind others, and when they are fetched; none is handled."""
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
