"""Faults of messages: malformed, foreign, of other versions, there twice, too late, and for nobody."""

from __future__ import annotations

import json
import random
import time
from copy import deepcopy
from functools import partial
from typing import Any

from malformed_messages import CASES, Case, items

from faults.account import Outcome
from faults.raw import put, take
from faults.world import Worker, World
from waooaw_celery.messages.message import ENVELOPE_HEADER

#: Seconds after the end of their time within which messages are EXPIRED that nobody began.
LATE = 5.0
#: What cannot travel, or would end who reads it.
IMPOSSIBLE: tuple[Any, ...] = (
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


def malformed(world: World, rounds: int, chance: random.Random) -> None:
    """Each way to be malformed meets a worker: it lives on, and what can be named has its end in the audit."""
    cases: list[tuple[Case, str, bytes]] = []
    ids = [world.send() for _ in CASES]
    messages = {message["headers"]["id"]: message for message in take(world, len(ids))}
    for (case, item), id_ in zip(items(iter([messages[id_] for id_ in ids])), ids, strict=True):
        cases.append((case, id_, item))
    worker = world.start()
    chance.shuffle(cases)
    for case, id_, item in cases:
        there = put(world, item)
        if not there or not case.named:
            world.note(id_, Outcome("raw", case.label, 0.0))  # nobody can tell what became of it
        if not there:
            continue
        probe = world.send()
        try:
            world.until(partial(_met, world, worker, probe), "the next message", 10)
        except AssertionError:
            world.expect(False, f"after {case.label!r} nothing was handled")
        if worker.process.poll() is not None:
            world.expect(False, f"{case.label!r} ended the worker")
            world.bury(worker)
            if not world.ours:
                return  # enough is known
            worker = world.start()
    world.drain()


def _met(world: World, worker: Worker, id_: str) -> bool:
    return world.handled(id_) or worker.process.poll() is not None


def impossible(world: World, rounds: int, chance: random.Random) -> None:
    """What cannot travel is refused where it is sent; what is merely hostile arrives as it is."""
    worker = world.start()
    refused = [world.say(payload) for payload in IMPOSSIBLE]
    for id_ in refused:
        world.expect(world.outcomes[id_].what == "refused", f"a payload that cannot travel: {world.outcomes[id_]}")
    arrived = [world.say({"text": text, text: [text]}) for text in HOSTILE]
    world.until(lambda: world.handled(*arrived), "hostile texts")
    log = world.log(worker)
    world.expect(not any(line.startswith("[2026-01-01") for line in log.splitlines()), "a line was forged")


def unroutable(world: World, rounds: int, chance: random.Random) -> None:
    """Messages to an agent that nobody ever declared are refused, and nothing of them is left anywhere."""
    name, queue = world.stack.name, world.waiting()
    for _ in range(rounds):
        world.stack.name = f"{name}-ghost"
        try:
            id_ = world.send()
        finally:
            world.stack.name = name
        world.expect(world.outcomes[id_].what == "refused", f"it was {world.outcomes[id_].what}")
    world.expect(world.waiting() == queue, "it is in a queue")
    world.start()


def queue_deleted(world: World, rounds: int, chance: random.Random) -> None:
    """The agent's queue is deleted after it was used: who sends is told, or it is handled."""
    from kombu import Connection

    worker = world.start()
    for _ in range(rounds):
        world.send()
        world.drain()
        with Connection(world.broker.url) as connection, connection.channel() as channel:
            channel.queue_delete(world.stack.queue())
        for _ in range(3):
            world.send(ttl=5)
        if worker.process.poll() is None:
            world.kill(worker)
        worker = world.start()


def twice(world: World, rounds: int, chance: random.Random) -> None:
    """The same messages are in the queue twice, for two workers: each is handled once, and audited once."""
    ids = [world.send(seconds=0.05) for _ in range(10 * rounds)]
    messages = take(world, len(ids))
    for message in messages:
        for _ in range(2):
            put(world, json.dumps(message).encode())
    world.start()
    world.start()


def letters(world: World, rounds: int, chance: random.Random) -> None:
    """Handlers are mended, and their dead letters sent again: all are handled but those that still fail."""
    worker = world.start()
    ids = [world.send("fail at first") for _ in range(10 * rounds)]
    poison = [world.send("run out of memory") for _ in range(2 * rounds)]
    world.until(lambda: all(world.ended(id_) for id_ in [*ids, *poison]), "their ends")
    world.mend()
    desk, mine = world.desk(), dict[str, Any]({"agent": world.stack.name, "limit": 100 * rounds})
    world.until(lambda: len(desk.list(**mine)) == len(ids) + len(poison), "their dead letters")
    for attempt in range(5):
        sent = [outcome.new_id for outcome in desk.retry(desk.list(**mine)) if outcome.new_id is not None]
        for new_id in sent:
            world.note(new_id, Outcome("accepted", "", 0.0))
        expected = len(ids) + len(poison) if attempt == 0 else len(poison) if attempt < 3 else 0
        world.expect(len(sent) == expected, f"{len(sent)} letters were sent again, and not {expected}")
        world.until(lambda sent=sent: all(world.ended(id_) for id_ in sent), "the ends of the new ones")  # type: ignore[misc]
        world.until(lambda: len(desk.list(**mine)) == len(poison), "the letters of those that still fail")
    world.expect(worker.process.poll() is None, "the worker came to an end")


def other_versions(world: World, rounds: int, chance: random.Random) -> None:
    """Envelopes of newer and of older versions arrive: with fields that nobody knows, and without known ones."""
    ids = [world.send() for _ in range(10 * rounds)]
    messages = take(world, len(ids))
    envelope = messages[0]["headers"][ENVELOPE_HEADER]
    names = list(envelope) if isinstance(envelope, dict) else []
    for number, message in enumerate(messages):
        changed = deepcopy(message)
        if names and number % 2:
            changed["headers"][ENVELOPE_HEADER].pop(chance.choice(names))
        elif names:
            changed["headers"][ENVELOPE_HEADER]["of_the_future"] = {"a": [number]}
            changed["headers"]["x-of-the-future"] = number
        put(world, json.dumps(changed).encode())
    worker = world.start()
    world.until(lambda: all(world.ended(id_) for id_ in ids), "their ends")
    world.expect(worker.process.poll() is None, "the worker came to an end")


def expiry(world: World, rounds: int, chance: random.Random) -> None:
    """Messages are too late: with no worker there, behind others, and when they are fetched; none is handled."""
    with world.system():
        ids = [world.send(ttl=1.0) for _ in range(3 * rounds)]
        began = time.monotonic()
        world.until(lambda: all(world.ended(id_) for id_ in ids), "their ends without a worker")
        took = time.monotonic() - began
        world.expect(took <= 1 + LATE + 5, f"their end came after {took:.1f} s")
        world.start()
        for _ in range(world.processes):
            world.send(seconds=3)
        behind = [world.send(ttl=1.0) for _ in range(3 * rounds)]
        world.until(lambda: all(world.ended(id_) for id_ in behind), "their ends behind others")
        world.expect(not any(world.begun(id_) for id_ in [*ids, *behind]), "one was begun too late")
