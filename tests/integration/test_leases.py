"""Leases of real workers: a living worker keeps its messages, and those of a killed worker are redelivered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from plain_workers import plant
from redis import Redis
from support import Broker, settled, until

from waooaw_celery import Message, MessageBus, MessageStatus
from waooaw_celery.broker.redis.dead_lettering import DEAD_LETTERS_KEY
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.store.connection import store_url
from waooaw_celery.testing.embedded import end_all

#: A sitecustomize module, which Python imports first: it sets the clock of a process ahead.
SKEW = """
import time
right = time.time
time.time = lambda: right() + 4000
"""
POOLS = ("prefork", "threads", "solo")


@pytest.mark.slow
def test_long_handler_runs_once(redis_url: str, tmp_path: Path) -> None:
    """A handler three times as long as a lease runs once on any pool, beside an idle worker with a wrong clock."""
    (tmp_path / "sitecustomize.py").write_text(SKEW)
    skewed = {"PYTHONPATH": str(tmp_path)}
    options = {"visibility_timeout": 2, "unacked_restore_interval": 0.5}
    with ExitStack() as stack:
        plants = [stack.enter_context(plant(redis_url, tmp_path, transport_options=options)) for _ in POOLS]
        for made, pool in zip(plants, POOLS, strict=True):
            made.start("-P", pool)
            made.send(pool, 6)
            made.wait(pool, "began")
        for made in plants:
            made.start("-P", "solo", env=skewed)
        for made, pool in zip(plants, POOLS, strict=True):
            made.wait(pool)
            until(lambda: made.held() == 0, "acknowledging")  # noqa: B023 - called within the iteration
            assert (made.labels("began"), made.waiting()) == ([pool], [])


def test_skewed_process_is_ahead(tmp_path: Path) -> None:
    """A process with SKEW is 4,000 seconds ahead: the test above relies on it."""
    (tmp_path / "sitecustomize.py").write_text(SKEW)
    command = [sys.executable, "-c", "import time; print(time.time())"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, timeout=30, check=True
    )
    assert 3900 < float(done.stdout) - time.time() < 4100


@pytest.mark.slow
def test_message_of_a_killed_worker_is_redelivered(redis_url: str, tmp_path: Path) -> None:
    """Another worker runs it within seconds, with the redelivered flag and the delivery count."""
    options = {"visibility_timeout": 3, "unacked_restore_interval": 1}
    with plant(redis_url, tmp_path, transport_options=options) as made:
        first = made.start()
        made.send("killer", 1)
        made.send("waits")
        made.wait("killer", "began")
        os.killpg(made.processes[first].pid, signal.SIGKILL)
        killed_at = time.monotonic()
        second = made.start()
        made.wait("waits")
        made.wait("killer")
        assert time.monotonic() - killed_at < 10
        [once, again] = [fact for fact in made.effects("began") if fact["label"] == "killer"]
        assert (once["redelivered"], once["count"], again["worker"]) == (False, None, second)
        assert (again["redelivered"], again["count"]) == (True, 1)
        until(lambda: made.held() == 0, "acknowledging")
        assert sorted(made.labels()) == ["killer", "waits"]


@pytest.fixture
def agents(ledger_broker: Broker) -> Iterator[list[Any]]:
    """Processes that are ended after the test."""
    processes: list[Any] = []
    yield processes
    end_all(processes)


@pytest.mark.slow
def test_message_that_kills_its_workers_becomes_a_dead_letter(ledger_broker: Broker, agents: list[Any]) -> None:
    """After ``delivery_limit`` deaths the message is a dead letter, and DEAD in the ledger."""
    app, name = ledger_broker.app(), ledger_broker.name()
    options = {"visibility_timeout": 2, "unacked_restore_interval": 0.5, "delivery_limit": 1}
    bus = MessageBus(app)
    app.conf.waooaw_agents = [name]
    sent = bus.send(Message(from_agent="tests", to_agent=name, payload={"sleep": 60}, ttl_seconds=None))
    for number in range(3):
        node = f"{name}-{number}"
        logged = "-l", "INFO"
        agents.append(ledger_broker.start(name, app, *logged, node=node, broker_transport_options=options))
        if number < 2:
            log = ledger_broker.folder / f"{node}.log"
            until(lambda: was_received(log, sent.message_id), f"{node} to have it")  # noqa: B023 - called within the iteration
            os.killpg(agents[-1].pid, signal.SIGKILL)
    assert settled(app, sent.message_id) is MessageStatus.DEAD
    assert bus.receipt(sent.message_id).error == "its consumer died 2 times"
    with Redis.from_url(store_url(ledger_broker.redis_url)) as server:
        letters = [fields for _, fields in server.xrevrange(DEAD_LETTERS_KEY, count=100)]
        [letter] = [each for each in letters if each[b"queue"].decode() == agent_queue(name).name]
    raw = json.loads(letter[b"raw"])
    assert raw["headers"]["id"] == sent.message_id
    assert raw["headers"]["x-delivery-count"] == 1
    app.close()


def was_received(log: Path, id_: str) -> bool:
    """Return whether a worker's log shows that it received a message."""
    return f"[{id_}] received" in log.read_text()
