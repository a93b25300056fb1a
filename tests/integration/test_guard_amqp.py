"""What is malformed meets a real worker on RabbitMQ: it lives on, and what dies is kept as a dead letter."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from malformed_messages import CASES, Case, End, items
from rawqueue import publishable, put, real_messages
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter
from waooaw_celery.embedded import end
from waooaw_celery.messages.queues import agent_queue

pytestmark = [pytest.mark.rabbitmq, pytest.mark.usefixtures("dead_letters_alone")]


class Corpus(NamedTuple):
    """A worker, and what it will be given: body and properties of each case, and the id of its message."""

    name: str
    made: dict[str, tuple[bytes, dict[str, Any], str]]


@pytest.fixture(scope="module")
def app(rabbitmq_broker: Broker) -> Iterator[AgentApp]:
    """An application that speaks as ``tests``."""
    app = rabbitmq_broker.app()
    yield app
    app.close()


@pytest.fixture(scope="module")
def corpus(rabbitmq_broker: Broker, app: AgentApp) -> Iterator[Corpus]:
    """Messages whose receipts are known, taken out of their queue before the agent's worker begins."""
    name = rabbitmq_broker.name()
    sender = rabbitmq_broker.app(waooaw_agents=[name])
    messages = real_messages(sender, name, len(CASES))
    sender.close()
    ids = {case.label: message["headers"]["id"] for case, message in zip(CASES, messages, strict=True)}
    made = {case.label: publishable(item) for case, item in items(iter(messages))}
    process = rabbitmq_broker.start(name, app)
    yield Corpus(name, {label: (*found, ids[label]) for label, found in made.items() if found is not None})
    assert process.poll() is None, "the worker came to an end"
    end(process)
    app.dead_letters.discard(app.dead_letters.list(queue=agent_queue(name).name, limit=10_000), reason="a test's")


@pytest.fixture
def channel(app: AgentApp) -> Iterator[Any]:
    """A channel to publish what no client should."""
    with app.connection_for_write() as connection, connection.channel() as channel:
        yield channel


def pid_of(app: AgentApp, name: str) -> int:
    pid = RequestResponseHandler(app).request(name, "parent", timeout=20)
    assert isinstance(pid, int)
    return pid


@pytest.fixture(scope="module")
def first_pid(corpus: Corpus, app: AgentApp) -> int:
    """The worker's process before it meets anything."""
    return pid_of(app, corpus.name)


def newest(app: AgentApp, corpus: Corpus) -> DeadLetter | None:
    found = app.dead_letters.list(queue=agent_queue(corpus.name).name, limit=1)
    return found[0] if found else None


def test_most_of_the_corpus_can_be_said_on_rabbitmq(corpus: Corpus) -> None:
    """Only what is no item of a Redis queue, or has no headers and properties there, is left out."""
    assert len(corpus.made) > 75


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_a_worker_lives_through_each_malformed_message(
    case: Case, corpus: Corpus, app: AgentApp, channel: Any, first_pid: int
) -> None:
    """It is kept as a dead letter, with its bytes, or handled; its worker goes on, and the receipt says so."""
    if case.label not in corpus.made:
        pytest.skip("it cannot be said in AMQP")
    body, properties, id_ = corpus.made[case.label]
    before = newest(app, corpus)
    put(channel, agent_queue(corpus.name).name, body, properties)
    dies = case.end in (End.DEAD, End.REFUSED) and case.label not in _READ_HERE
    if dies:
        until(lambda: (newest(app, corpus) or before) != before, f"the dead letter of {case.label}")
        letter = newest(app, corpus)
        assert letter is not None
        assert letter.reason.isprintable()
        again = publishable(letter.raw)
        if again is not None:
            assert again[0] == body
            assert json.dumps(again[1]["application_headers"]) == json.dumps(properties["application_headers"])
        if case.named:
            assert (letter.message_id, letter.agent) == (id_, corpus.name)
            assert settled(app, id_) is MessageStatus.DEAD
            assert MessageBus(app).receipt(id_).error == letter.reason
    elif case.end is End.EXPIRED:
        assert settled(app, id_) is MessageStatus.EXPIRED
    else:
        assert settled(app, id_) in (MessageStatus.HANDLED, MessageStatus.FAILED)
    assert pid_of(app, corpus.name) == first_pid


#: What is malformed on Redis only: properties that RabbitMQ does not have, and JSON in place of its tables.
_READ_HERE = (
    *("no delivery_info", "delivery_info is text"),
    *("a wrapped number that is none", "a wrapped uuid that is none", "wrapped bytes that are none"),
)


def test_headers_that_are_nested_beyond_all_stacks_are_a_dead_letter(
    corpus: Corpus, app: AgentApp, first_pid: int
) -> None:
    """py-amqp raises RecursionError where it reads the frame: the message arrives without properties."""
    deep: Any = {}
    for _ in range(5000):
        deep = {"": deep}
    before = newest(app, corpus)

    def publish() -> None:
        sys.setrecursionlimit(100_000)
        try:
            with app.connection_for_write() as connection, connection.channel() as channel:
                way = {"content_type": "application/json", "content_encoding": "utf-8", "priority": 3}
                put(channel, agent_queue(corpus.name).name, b"[[],{},{}]", {"application_headers": deep, **way})
        finally:
            sys.setrecursionlimit(limit)

    limit = sys.getrecursionlimit()
    size = threading.stack_size(256 * 1024 * 1024)
    try:
        thread = threading.Thread(target=publish)
        thread.start()
        thread.join(30)
    finally:
        threading.stack_size(size)
    until(lambda: (newest(app, corpus) or before) != before, "the dead letter")
    letter = newest(app, corpus)
    assert letter is not None
    assert b"[[],{},{}]" in (publishable(letter.raw) or (letter.raw,))[0]
    assert pid_of(app, corpus.name) == first_pid


def test_a_content_encoding_that_makes_nonsense_is_a_dead_letter(
    corpus: Corpus, app: AgentApp, channel: Any, first_pid: int
) -> None:
    """py-amqp decodes bodies by whatever codec a message names: also to halves of surrogate pairs."""
    before = newest(app, corpus)
    way = {"content_type": "application/json", "content_encoding": "unicode_escape", "priority": 3}
    headers = {"task": f"{corpus.name}.command", "id": "surrogate", "lang": "py"}
    body = b'[["\\ud800"],{},{}]'
    put(channel, agent_queue(corpus.name).name, body, {"application_headers": headers, **way})
    until(lambda: (newest(app, corpus) or before) != before, "the dead letter")
    letter = newest(app, corpus)
    assert letter is not None
    assert (letter.message_id, letter.reason.isprintable()) == ("surrogate", True)
    assert pid_of(app, corpus.name) == first_pid


def test_who_asks_for_an_unknown_method_is_told_and_a_letter_is_kept(corpus: Corpus, app: AgentApp) -> None:
    """The caller of a request gets its error at once, and the message is DEAD."""
    app.conf.waooaw_agents = ()
    call = app.signature(f"{corpus.name}.echo", kwargs={"value": 1}).delay()
    assert call.get(timeout=20) == 1
    unknown = f"{corpus.name}.unheard_of"
    message = Message(from_agent="tests", to_agent=corpus.name)
    with app.connection_for_write() as connection, connection.channel() as channel:
        headers = {"task": unknown, "id": message.message_id, "lang": "py"}
        way = {"content_type": "application/json", "content_encoding": "utf-8", "priority": 3}
        put(channel, agent_queue(corpus.name).name, b"[[],{},{}]", {"application_headers": headers, **way})
    result = app.AsyncResult(message.message_id)
    until(result.ready, "the answer")
    assert type(result.result).__name__ == "NotRegistered"
    [letter] = app.dead_letters.list(queue=agent_queue(corpus.name).name, reason="no handler", limit=1)
    assert (letter.task, letter.handler) == (unknown, "unheard_of")


def test_the_log_is_not_forged(corpus: Corpus, rabbitmq_broker: Broker) -> None:
    """The worker's log names the dead letters, and no line of it begins as a publisher wished."""
    log = (rabbitmq_broker.folder / f"{corpus.name}.log").read_text()
    assert "became a dead letter" in log
    assert not any(line.startswith("[2026-01-01") for line in log.splitlines())
