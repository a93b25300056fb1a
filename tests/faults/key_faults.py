"""Faults while messages are handled in order by key: no two of a key at once, and none before an earlier one."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import uuid4

from faults.account import Outcome
from faults.cluster import WAIT_SECONDS, Cluster
from faults.effects import Effect
from waooaw_celery import Message, MessageType

#: Of the workers of these faults: their commands have keys.
KEYED = {"FAULTS_KEY": "payload.key"}
#: Messages for each kill and keys in the long run, from ``LONG`` rounds on, and in a short one.
LONG = 10
MANY, KEYS = (5_000, 1_000), (1_000, 30)
#: Each message with such a number fails at first, and is tried again.
FAILS_EVERY = 50
#: Messages that are sent together.
BATCH = 500
#: Seconds without any progress after which the workers count as stuck: a killed one holds its keys for 15 s.
STUCK_SECONDS = 60.0

#: The key of each message, and its number within the messages that were sent.
Places = dict[str, tuple[str, int]]


def kill_with_keys(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """Two workers handle messages with keys; in each round, one of them is killed and replaced."""
    count, keys = (MANY[0], KEYS[0]) if rounds >= LONG else (MANY[1], KEYS[1])
    places: Places = {}
    cluster.start(env=KEYED)
    cluster.start(env=KEYED)
    for _ in range(rounds):
        _send_all(cluster, places, count, keys)
        time.sleep(rng.uniform(0.1, 1.0))
        cluster.kill(cluster.workers[0])
        cluster.start(env=KEYED)
    _wait(cluster, places)
    _check(cluster, places)


def all_with_keys(cluster: Cluster, rounds: int, rng: random.Random) -> None:
    """Workers are killed, frozen and shut down, and the database crashes, under load with keys."""
    places: Places = {}
    cluster.start(env=KEYED)
    with _load(cluster, places):
        for number in range(rounds):
            worker = cluster.start(env=KEYED)
            time.sleep(rng.uniform(0.2, 1.0))
            match number % 4:
                case 0:
                    cluster.kill(worker)
                case 1:
                    worker.process.send_signal(signal.SIGSTOP)
                    time.sleep(rng.uniform(0.5, 2.0))
                    cluster.kill(worker)
                case 2:
                    worker.process.send_signal(signal.SIGTERM)
                    cluster.reap(worker)
                case _:
                    cluster.postgres.stop()
                    time.sleep(rng.uniform(0.5, 2.0))
                    cluster.postgres.start()
                    cluster.kill(worker)
    _wait(cluster, places)
    _check(cluster, places)


def check_order(effects: Sequence[Effect], places: Places) -> list[str]:
    """Return a sentence for each message of a key that began before an earlier one had ended.

    An attempt without an end was killed, or failed: the next one of the key must be the same message.

    Args:
        effects: what the handlers recorded, in order.
        places: the key and the number of each message that was accepted.
    """
    found: list[str] = []
    left: dict[str, list[int]] = {}  # the numbers that have not ended, by key, the next one last
    for key, number in sorted(places.values(), reverse=True):
        left.setdefault(key, []).append(number)
    for effect in effects:
        if effect.id not in places:
            continue
        key, number = places[effect.id]
        expected = left[key]
        if effect.what == "begun" and expected and number > expected[-1]:
            found.append(f"{number} of {key} began before {expected[-1]} had ended")
        elif effect.what == "done" and number in expected[-1:]:
            expected.pop()
        elif effect.what == "done" and number in expected:
            expected.remove(number)
    return found


def _check(cluster: Cluster, places: Places) -> None:
    accepted = {id_: place for id_, place in places.items() if cluster.outcomes[id_].what == "accepted"}
    found = check_order(cluster.effects(), accepted)
    cluster.expect(not found, f"order by key: {len(found)} violations, such as {'; '.join(found[:3])}")


def _payload(number: int, keys: int, seconds: float) -> dict[str, object]:
    do = "fail once" if number % FAILS_EVERY == 1 else "work"
    return {"do": do, "seconds": seconds, "key": f"k{number % keys}"}


def _send_all(cluster: Cluster, places: Places, count: int, keys: int) -> None:
    """Send messages together, without the waits of single ones."""
    first = len(places)
    for start in range(first, first + count, BATCH):
        numbers = range(start, min(start + BATCH, first + count))
        messages = [
            Message(
                from_agent="driver",
                to_agent=cluster.stack.name,
                message_type=MessageType.COMMAND,
                payload=_payload(number, keys, 0.0),
                ttl_seconds=None,
            )
            for number in numbers
        ]
        began = time.monotonic()
        cluster.stack.bus.send_many(messages)  # type: ignore[attr-defined]  # these faults have agents
        for number, message in zip(numbers, messages, strict=True):
            places[message.message_id] = f"k{number % keys}", number
            cluster.note(message.message_id, Outcome("accepted", "", (time.monotonic() - began) / BATCH))


@contextmanager
def _load(cluster: Cluster, places: Places, keys: int = 10, rate: float = 50.0) -> Iterator[None]:
    """Send messages with keys at a steady rate while the block runs."""
    over = threading.Event()

    def send() -> None:
        number = 0
        while not over.wait(1 / rate):
            id_ = str(uuid4())
            places[id_] = f"k{number % keys}", number
            cluster.send_payload(_payload(number, keys, 0.01 * (number % 4)), ttl=None, id_=id_)
            number += 1

    thread = threading.Thread(target=send, name="keyed load")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive(), "a driver hangs"


def _wait(cluster: Cluster, places: Places) -> None:
    """Wait until all messages are handled, as long as there is progress."""
    left, since = len(places), time.monotonic()
    while left:
        time.sleep(min(0.1 + len(places) / 50_000, 2.0))
        done = {effect.id for effect in cluster.effects() if effect.what == "done"}
        accepted = {id_ for id_ in places if cluster.outcomes[id_].what == "accepted"}
        now_left = len(accepted - done)
        if now_left < left:
            left, since = now_left, time.monotonic()
        logs = "".join(cluster.log(worker) for worker in cluster.workers)
        assert time.monotonic() - since < STUCK_SECONDS, f"{left} messages with keys are not handled: {logs}"
