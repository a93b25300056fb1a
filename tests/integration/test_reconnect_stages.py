"""A worker loses its lines while messages are at every stage of their lives: each is handled once, at its time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from support import Broker, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus
from waooaw_celery.embedded import end, valkey

OPTIONS = {"visibility_timeout": 2, "unacked_restore_interval": 0.5}
#: Seconds that a message waits for its time: longer than a lease.
WAIT = 5.0
#: Pools, and how many messages each handles at a time.
POOLS = {"prefork": 2, "threads": 2, "solo": 1, "gevent": 10}


@pytest.fixture(scope="module")
def own_broker(ledger_broker: Broker) -> Iterator[Broker]:
    """A server of these tests' own: it cuts everybody off."""
    with valkey() as url:
        yield Broker(url, ledger_broker.redis_url, ledger_broker.folder, ledger_broker.database_url)


class Sender:
    """Sends messages to a worker, and knows when each was begun.

    Args:
        app: an application.
        name: name of the worker's agent.
        folder: for the file in which the handlers note when they begin.
    """

    def __init__(self, app: AgentApp, name: str, folder: Path) -> None:
        self._app, self._name, self._marks = app, name, folder / f"marks-{uuid4().hex}"
        self.bus = MessageBus(app)

    def send(self, **do: Any) -> str:
        """Send a message, and return its id."""
        payload = {"mark": str(self._marks), **do}
        message = Message(from_agent="tests", to_agent=self._name, payload=payload)
        return self.bus.send(message).message_id

    def send_later(self, seconds: float) -> str:
        """Send a message that is due in so many seconds, and return its id."""
        name, payload = f"{self._name}.command", {"mark": str(self._marks)}
        return str(self._app.send_task(name, args=(payload,), countdown=seconds).id)

    def begun(self, id_: str) -> list[float]:
        """Return when the handler of a message was begun, by the clock."""
        lines = self._marks.read_text().splitlines() if self._marks.exists() else []
        return [float(at) for each, at in map(str.split, lines) if each == id_]


@pytest.mark.parametrize("pool", POOLS)
def test_lines_that_are_cut_lose_and_double_nothing(own_broker: Broker, pool: str, tmp_path: Path) -> None:
    """What runs goes on, and what waits for a process, its time or its second attempt is handled once."""
    with closing(own_broker.app()) as app, closing(Redis.from_url(redis_url(own_broker))) as client:
        name = own_broker.name()
        settings = {"broker_transport_options": OPTIONS, "worker_prefetch_multiplier": 4}
        worker = own_broker.start(name, app, "-P", pool, "-c", str(POOLS[pool]), **settings)
        try:
            sender = Sender(app, name, tmp_path)
            acknowledged = sender.send()
            until(lambda: sender.bus.receipt(acknowledged).status is MessageStatus.HANDLED, "the first one")
            sent_at = time.time()
            due = [sender.send_later(WAIT) for _ in range(2)]
            second_attempt = sender.send(fail_times=1, countdown=WAIT)
            until(lambda: len(sender.begun(second_attempt)) == 1, "the first attempt")
            failed_at = time.time()
            until(lambda: client.hlen("unacked") == 3, "the three that wait for their time")
            running = [sender.send(sleep=3) for _ in range(min(POOLS[pool], 2))]
            until(lambda: all(sender.begun(id_) for id_ in running), "those that run")
            reserved = [sender.send() for _ in range(3)]
            if pool in ("prefork", "threads"):  # the others have room, or claim nothing while a handler runs
                until(lambda: client.hlen("unacked") == 3 + 2 + 3, "those that wait for a process")
            worker.send_signal(signal.SIGSTOP)
            claimed = [
                sender.send() for _ in range(2)
            ]  # the answer to a claim may bring them to the frozen worker
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)
            worker.send_signal(signal.SIGCONT)
            later = sender.send()
            once = [acknowledged, *due, *running, *reserved, *claimed, later]
            every = [*once, second_attempt]
            until(lambda: ends(sender, every) == {MessageStatus.HANDLED}, "the end of each", 45)
            until(lambda: client.hlen("unacked") == 0, "the last acknowledgement")
            assert {id_: len(sender.begun(id_)) for id_ in once} == dict.fromkeys(once, 1)
            for id_ in due:
                assert WAIT - 0.1 < sender.begun(id_)[0] - sent_at < WAIT + 10
            first, *again = sender.begun(second_attempt)
            assert len(again) == 1
            assert again[0] - first > WAIT - 0.1
            assert again[0] - failed_at < WAIT + 10
            assert worker.poll() is None
        finally:
            end(worker)


def redis_url(broker: Broker) -> str:
    """Return the URL of a broker's server for a plain client."""
    return broker.url.replace("redis+socket://", "unix://")


def ends(sender: Sender, ids: list[str]) -> set[MessageStatus]:
    """Return which states messages have."""
    return {sender.bus.receipt(id_).status for id_ in ids}
