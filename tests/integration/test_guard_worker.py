"""Malformed messages for a real worker on Redis: it lives on, and every message has a recorded end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import pytest
from malformed_messages import CASES, Case, End, items
from redis import Redis
from support import Broker, queue_length, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, Priority
from waooaw_celery.broker.redis.dead_lettering import DEAD_LETTERS_KEY
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.store.connection import store_url


class Corpus(NamedTuple):
    """A worker, and the messages for it.

    Attributes:
        name: The name of the agent.
        node: The node name of its worker.
        pid: The process id of the worker before it received anything.
        items: The raw item of each case, and the id of the message that it was made from.
    """

    name: str
    node: str
    pid: int
    items: dict[str, tuple[bytes, str]]


@pytest.fixture(scope="module")
def server(redis_url: str) -> Iterator[Any]:
    """A client of the broker's server."""
    with Redis.from_url(store_url(redis_url)) as client:
        yield client


@pytest.fixture(scope="module")
def corpus(ledger_broker: Broker, server: Any) -> Iterator[Corpus]:
    """Messages in the ledger, taken out of their queue before the agent's worker starts."""
    app = ledger_broker.app()
    name = ledger_broker.name()
    app.conf.waooaw_agents = [name]
    for number, _ in enumerate(CASES):
        MessageBus(app).send(Message(from_agent="tests", to_agent=name, payload={"number": number}))
    [key] = [key for key in server.scan_iter(f"{agent_queue(name).name}*") if not key.endswith(b"bell")]
    messages = [json.loads(item) for item in reversed(server.lrange(key, 0, -1))]
    server.delete(key)
    made = {case.label: item for case, item in items(iter(messages))}
    ids = {case.label: message["headers"]["id"] for case, message in zip(CASES, messages, strict=True)}
    with closing(app), ledger_broker.running(name, app):
        [node] = app.registry.get(name).workers
        items_by_label = {label: (item, ids[label]) for label, item in made.items()}
        yield Corpus(name, node, pid_of(app, node), items_by_label)


@pytest.fixture(scope="module")
def app(ledger_broker: Broker) -> Iterator[AgentApp]:
    """An application that sends as ``tests``."""
    app = ledger_broker.app()
    yield app
    app.close()


def pid_of(app: AgentApp, node: str) -> int:
    """Ask a worker for its process id over remote control, again until it is connected."""
    stats: dict[str, Any] = {}
    until(lambda: stats.update(app.control.inspect(destination=[node], timeout=2).stats() or {}) or stats, node)
    return int(stats[node]["pid"])


def dead_letter_of(server: Any, item: bytes) -> dict[bytes, bytes] | None:
    """Return the dead letter that holds an item."""
    for _, fields in server.xrevrange(DEAD_LETTERS_KEY, count=5):
        if fields[b"raw"] == item:
            found: dict[bytes, bytes] = fields
            return found
    return None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_worker_survives_each_malformed_message(case: Case, corpus: Corpus, app: AgentApp, server: Any) -> None:
    """The message becomes a dead letter byte by byte, or is handled; the ledger knows, and its worker lives on."""
    item, id_ = corpus.items[case.label]
    queue = agent_queue(corpus.name).name
    server.lpush(queue, item)
    server.lpush(f"{queue}\x06\x16bell", 1)  # only to be faster: a worker looks every second
    if case.end in (End.DEAD, End.REFUSED):
        until(lambda: dead_letter_of(server, item), f"the dead letter of {case.label}")
        dead_letter = dead_letter_of(server, item)
        assert dead_letter is not None
        assert dead_letter[b"queue"].decode() == queue
        assert dead_letter[b"reason"].decode().isprintable()
    if case.named:
        expected = {
            End.DEAD: (MessageStatus.DEAD,),
            End.REFUSED: (MessageStatus.DEAD,),
            End.EXPIRED: (MessageStatus.EXPIRED,),
            End.HANDLED: (MessageStatus.HANDLED, MessageStatus.FAILED),
        }[case.end]
        assert settled(app, id_) in expected
    if case.end in (End.DEAD, End.REFUSED) and case.named:
        assert MessageBus(app).receipt(id_).error == dead_letter_of(server, item)[b"reason"].decode()  # type: ignore[index]
    assert pid_of(app, corpus.node) == corpus.pid
    assert not any(server.llen(key) for key in server.scan_iter(f"{queue}*") if not key.endswith(b"bell"))


@pytest.mark.parametrize("broadcast", [b"\xff", b"[1]", b"{}", b'{"properties": {}}', b'{"properties": 5}'])
def test_worker_survives_malformed_broadcasts(
    broadcast: bytes, corpus: Corpus, app: AgentApp, server: Any
) -> None:
    """A malformed message on the remote control channel is dropped, and the worker answers the next one."""
    database = server.connection_pool.connection_kwargs.get("db") or 0
    assert server.publish(f"/{database}.celery.pidbox", broadcast) > 0
    assert pid_of(app, corpus.node) == corpus.pid


@pytest.fixture
def all_taken(corpus: Corpus, app: AgentApp, server: Any) -> None:
    """Put every malformed message into the queue, and a good one. Wait until the worker has taken all of them."""
    queue = agent_queue(corpus.name).name
    server.lpush(queue, *(item for item, _ in corpus.items.values()))
    app.conf.waooaw_agents = [corpus.name]
    good = MessageBus(app).send(Message(from_agent="tests", to_agent=corpus.name, priority=Priority.LOW))
    assert settled(app, good.message_id) is MessageStatus.HANDLED
    until(lambda: queue_length(app, corpus.name) == 0, "an empty queue")


@pytest.mark.usefixtures("all_taken")
def test_nothing_is_left_unacknowledged(corpus: Corpus, server: Any) -> None:
    """In the end no message of the agent is unacknowledged."""
    queue = agent_queue(corpus.name).name.encode()
    until(lambda: not any(queue in entry for entry in server.hvals("unacked")), "the last acknowledgement")


@pytest.mark.usefixtures("all_taken")
def test_log_is_not_forged(corpus: Corpus, ledger_broker: Broker) -> None:
    """The worker's log names the dead letters, and no line begins as a publisher chose."""
    log = (ledger_broker.folder / f"{corpus.name}.log").read_text()
    assert log.count("became a dead letter") >= 20
    assert not any(line.startswith("[2026-01-01") for line in log.splitlines())
