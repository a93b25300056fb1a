"""What is malformed meets a real worker: it lives on, and nothing ends without a word."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from malformed_messages import CASES, Case, End, items
from redis import Redis
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus
from waooaw_celery.broker.redis.dead_lettering import DEAD_KEY
from waooaw_celery.embedded import end
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.store.connection import store_url


class Corpus(NamedTuple):
    """A worker, and what it will be given.

    Attributes:
        name: of the agent.
        node: of its worker.
        items: the raw item of each case, and the id of the message of which it was made.
    """

    name: str
    node: str
    items: dict[str, tuple[bytes, str]]


@pytest.fixture(scope="module")
def server(redis_url: str) -> Iterator[Any]:
    """The broker's server, as it is."""
    with Redis.from_url(store_url(redis_url)) as client:
        yield client


@pytest.fixture(scope="module")
def corpus(ledger_broker: Broker, server: Any) -> Iterator[Corpus]:
    """Messages that the ledger knows, taken out of their queue before the agent's worker begins."""
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
    process = ledger_broker.start(name, app)
    [node] = app.registry.get(name).workers
    yield Corpus(name, node, {label: (item, ids[label]) for label, item in made.items()})
    end(process)
    app.close()


@pytest.fixture(scope="module")
def app(ledger_broker: Broker) -> Iterator[AgentApp]:
    """An application that speaks as ``tests``."""
    app = ledger_broker.app()
    yield app
    app.close()


def pid_of(app: AgentApp, node: str) -> int:
    """Ask a worker for its process over remote control, which nobody hears who is not connected yet."""
    told: dict[str, Any] = {}
    until(lambda: told.update(app.control.inspect(destination=[node], timeout=2).stats() or {}) or told, node)
    return int(told[node]["pid"])


@pytest.fixture(scope="module")
def first_pid(corpus: Corpus, app: AgentApp) -> int:
    """The worker's process before it meets anything."""
    return pid_of(app, corpus.node)


def letter_of(server: Any, item: bytes) -> dict[bytes, bytes] | None:
    """Return the dead letter that holds an item."""
    for _, fields in server.xrevrange(DEAD_KEY, count=5):
        if fields[b"raw"] == item:
            found: dict[bytes, bytes] = fields
            return found
    return None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_a_worker_lives_through_each_malformed_message(
    case: Case, corpus: Corpus, app: AgentApp, server: Any, first_pid: int
) -> None:
    """It is kept as a dead letter, byte by byte, refused or handled; its worker goes on, and the ledger knows."""
    item, id_ = corpus.items[case.label]
    queue = agent_queue(corpus.name).name
    server.lpush(queue, item)
    server.lpush(f"{queue}\x06\x16bell", 1)  # a worker looks every second anyway
    if case.end in (End.DEAD, End.REFUSED):
        until(lambda: letter_of(server, item), f"the dead letter of {case.label}")
        letter = letter_of(server, item)
        assert letter is not None
        assert letter[b"queue"].decode() == queue
        assert letter[b"reason"].decode().isprintable()
    if case.named:
        expected = {
            End.DEAD: (MessageStatus.DEAD,),
            End.REFUSED: (MessageStatus.DEAD,),
            End.EXPIRED: (MessageStatus.EXPIRED,),
            End.HANDLED: (MessageStatus.HANDLED, MessageStatus.FAILED),
        }[case.end]
        assert settled(app, id_) in expected
    if case.end in (End.DEAD, End.REFUSED) and case.named:
        assert MessageBus(app).receipt(id_).error == letter_of(server, item)[b"reason"].decode()  # type: ignore[index]
    assert pid_of(app, corpus.node) == first_pid
    assert not any(server.llen(key) for key in server.scan_iter(f"{queue}*") if not key.endswith(b"bell"))


@pytest.mark.parametrize("said", [b"\xff", b"[1]", b"{}", b'{"properties": {}}', b'{"properties": 5}'])
def test_a_worker_lives_through_malformed_broadcasts(
    said: bytes, corpus: Corpus, app: AgentApp, server: Any, first_pid: int
) -> None:
    """What is no message on the channel of remote control is dropped; the worker answers the next one."""
    database = server.connection_pool.connection_kwargs.get("db") or 0
    assert server.publish(f"/{database}.celery.pidbox", said) > 0
    assert pid_of(app, corpus.node) == first_pid


def test_nothing_is_left_unacknowledged(corpus: Corpus, app: AgentApp, server: Any) -> None:
    """After all of them the broker holds nothing of the agent's that nobody will look at again."""
    queue = agent_queue(corpus.name).name.encode()
    until(lambda: not any(queue in noted for noted in server.hvals("unacked")), "the last acknowledgement")


def test_a_dead_letter_is_told_without_forging_the_log(corpus: Corpus, ledger_broker: Broker) -> None:
    """The worker's log names the dead letters, and no line of it begins as a publisher wished."""
    log = (ledger_broker.folder / f"{corpus.name}.log").read_text()
    assert "became a dead letter" in log
    assert not any(line.startswith("[2026-01-01") for line in log.splitlines())
