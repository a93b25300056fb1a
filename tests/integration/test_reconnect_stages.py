"""A worker loses its connections while it has messages at every stage: each is handled once, at its time."""

from __future__ import annotations

import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from support import Broker, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus
from waooaw_celery.testing.embedded import end

OPTIONS = {"visibility_timeout": 2, "unacked_restore_interval": 0.5}
#: The countdown of delayed messages in seconds: longer than a lease.
WAIT = 5.0
#: The pools, and how many messages each handles at once.
POOLS = {"prefork": 2, "threads": 2, "solo": 1, "gevent": 10}


class Sender:
    """Sends messages to a worker, and reads when each was started.

    Args:
        app: The application.
        name: The name of the worker's agent.
        folder: Where the handlers write the file with their start times.
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
        """Send a message with a countdown in seconds, and return its id."""
        name, payload = f"{self._name}.command", {"mark": str(self._marks)}
        return str(self._app.send_task(name, args=(payload,), countdown=seconds).id)

    def started_at(self, id_: str) -> list[float]:
        """Return the times at which the handler of a message was started."""
        lines = self._marks.read_text().splitlines() if self._marks.exists() else []
        return [float(at) for each, at in map(str.split, lines) if each == id_]


@pytest.mark.parametrize("pool", POOLS)
def test_lost_connections_lose_and_double_nothing(own_broker: Broker, pool: str, tmp_path: Path) -> None:
    """Running handlers continue. Messages that wait for a process, their time or a retry are handled once."""
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
            until(lambda: len(sender.started_at(second_attempt)) == 1, "the first attempt")
            failed_at = time.time()
            until(lambda: client.hlen("unacked") == 3, "the three delayed ones")
            running = [sender.send(sleep=3) for _ in range(min(POOLS[pool], 2))]
            until(lambda: all(sender.started_at(id_) for id_ in running), "the running ones")
            reserved = [sender.send() for _ in range(3)]
            if pool in ("prefork", "threads"):  # the others have free slots, or claim nothing while a handler runs
                until(lambda: client.hlen("unacked") == 3 + 2 + 3, "the prefetched ones")
            worker.send_signal(signal.SIGSTOP)
            claimed = [sender.send() for _ in range(2)]  # the reply to a claim may carry them to the paused worker
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)
            worker.send_signal(signal.SIGCONT)
            later = sender.send()
            once = [acknowledged, *due, *running, *reserved, *claimed, later]
            every = [*once, second_attempt]
            until(lambda: statuses(sender, every) == {MessageStatus.HANDLED}, "all of them to be handled", 45)
            until(lambda: client.hlen("unacked") == 0, "the last acknowledgement")
            assert {id_: len(sender.started_at(id_)) for id_ in once} == dict.fromkeys(once, 1)
            for id_ in due:
                assert WAIT - 0.1 < sender.started_at(id_)[0] - sent_at < WAIT + 10
            first, *again = sender.started_at(second_attempt)
            assert len(again) == 1
            assert again[0] - first > WAIT - 0.1
            assert again[0] - failed_at < WAIT + 10
            assert worker.poll() is None
        finally:
            end(worker)


def redis_url(broker: Broker) -> str:
    """Return the URL of a broker's server for a Redis client."""
    return broker.url.replace("redis+socket://", "unix://")


def statuses(sender: Sender, ids: list[str]) -> set[MessageStatus]:
    """Return the distinct statuses of messages."""
    return {sender.bus.receipt(id_).status for id_ in ids}
