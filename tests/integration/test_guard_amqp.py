"""Malformed messages for a real worker on RabbitMQ: it lives on, and stores dead letters."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from malformed_messages import CASES, Case, End, items
from rawqueue import publishable, put, real_messages
from support import Broker, pid_of, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus
from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.testing.embedded import end

pytestmark = [pytest.mark.rabbitmq, pytest.mark.usefixtures("dead_letters_alone")]


class Corpus(NamedTuple):
    """A worker, and the messages for it: body and properties of each case, and the id of its message."""

    name: str
    made: dict[str, tuple[bytes, dict[str, Any], str]]


@pytest.fixture(scope="module")
def app(rabbitmq_broker: Broker) -> Iterator[AgentApp]:
    """An application that sends as ``tests``."""
    app = rabbitmq_broker.app()
    yield app
    app.close()


@pytest.fixture(scope="module")
def corpus(rabbitmq_broker: Broker, app: AgentApp) -> Iterator[Corpus]:
    """Messages with receipts, taken out of their queue before the agent's worker starts."""
    name = rabbitmq_broker.name()
    sender = rabbitmq_broker.app(waooaw_agents=[name])
    messages = real_messages(sender, name, len(CASES))
    sender.close()
    ids = {case.label: message["headers"]["id"] for case, message in zip(CASES, messages, strict=True)}
    made = {case.label: publishable(item) for case, item in items(iter(messages))}
    process = rabbitmq_broker.start(name, app)
    yield Corpus(name, {label: (*found, ids[label]) for label, found in made.items() if found is not None})
    assert process.poll() is None, "the worker ended"
    end(process)
    app.dead_letters.discard(app.dead_letters.list(queue=agent_queue(name).name, limit=10_000), reason="a test's")


@pytest.fixture
def channel(app: AgentApp) -> Iterator[Any]:
    """A channel to publish messages that no client should publish."""
    with app.connection_for_write() as connection, connection.channel() as channel:
        yield channel


@pytest.fixture(scope="module")
def first_pid(corpus: Corpus, app: AgentApp) -> int:
    """The worker's process id before it receives anything."""
    return pid_of(app, corpus.name)


#: Ids of the dead letters that tests have seen.
_seen: set[str] = set()


def next_dead_letter(
    app: AgentApp, corpus: Corpus, what: str, is_meant: Callable[[DeadLetter], bool] = lambda _: True
) -> DeadLetter:
    """Wait for a dead letter that no test has seen. For a moment after a list, the queue may show none."""
    found: list[DeadLetter] = []

    def has_arrived() -> bool:
        letters = app.dead_letters.list(queue=agent_queue(corpus.name).name, limit=5)
        found.extend(letter for letter in letters if letter.id not in _seen and is_meant(letter))
        return bool(found)

    until(has_arrived, f"the dead letter of {what}")
    _seen.add(found[0].id)
    return found[0]


def body_of(letter: DeadLetter) -> bytes:
    """Return the body of the message in a dead letter."""
    return (publishable(letter.raw) or (letter.raw,))[0]


def test_most_of_the_corpus_can_be_published_on_rabbitmq(corpus: Corpus) -> None:
    """Only items without headers and properties, or that are not messages, are left out."""
    assert len(corpus.made) > 75


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_worker_survives_each_malformed_message(
    case: Case, corpus: Corpus, app: AgentApp, channel: Any, first_pid: int
) -> None:
    """The message becomes a dead letter or is handled, its receipt says so, and its worker lives on."""
    if case.label not in corpus.made:
        pytest.skip("impossible in AMQP")
    body, properties, id_ = corpus.made[case.label]
    put(channel, agent_queue(corpus.name).name, body, properties)
    is_dead = case.end in (End.DEAD, End.REFUSED) and case.label not in _HARMLESS_ON_RABBITMQ
    if is_dead:
        ids = {each for _, _, each in corpus.made.values()}

        def is_own(letter: DeadLetter) -> bool:  # and not of a message that failed in another test
            return letter.message_id == id_ if case.named else letter.message_id not in ids - {id_}

        dead_letter = next_dead_letter(app, corpus, case.label, is_own)
        assert dead_letter.reason.isprintable()
        published = publishable(dead_letter.raw)
        if published is not None:
            assert published[0] == body
            assert json.dumps(published[1]["application_headers"]) == json.dumps(properties["application_headers"])
        if case.named:
            assert (dead_letter.message_id, dead_letter.agent) == (id_, corpus.name)
            assert settled(app, id_) is MessageStatus.DEAD
            assert MessageBus(app).receipt(id_).error == dead_letter.reason
    elif case.end is End.EXPIRED:
        assert settled(app, id_) is MessageStatus.EXPIRED
    else:
        assert settled(app, id_) in (MessageStatus.HANDLED, MessageStatus.FAILED)
    assert pid_of(app, corpus.name) == first_pid


#: Malformed on Redis only: RabbitMQ does not have these properties, and has tables in place of JSON.
_HARMLESS_ON_RABBITMQ = (
    *("no delivery_info", "delivery_info is text"),
    *("an invalid wrapped number", "an invalid wrapped uuid", "invalid wrapped bytes"),
)


def test_deeply_nested_headers_become_a_dead_letter(corpus: Corpus, app: AgentApp, first_pid: int) -> None:
    """py-amqp raises RecursionError while it reads the frame: the message arrives without properties."""
    deep: Any = {}
    for _ in range(5000):
        deep = {"": deep}

    def publish() -> None:
        sys.setrecursionlimit(100_000)
        try:
            with app.connection_for_write() as connection, connection.channel() as channel:
                content = {"content_type": "application/json", "content_encoding": "utf-8", "priority": 3}
                put(
                    channel, agent_queue(corpus.name).name, b"[[],{},{}]", {"application_headers": deep, **content}
                )
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
    dead_letter = next_dead_letter(app, corpus, "nested headers", lambda letter: b"[[],{},{}]" in body_of(letter))
    assert dead_letter.reason.isprintable()
    assert pid_of(app, corpus.name) == first_pid


def test_content_encoding_with_surrogates_becomes_a_dead_letter(
    corpus: Corpus, app: AgentApp, channel: Any, first_pid: int
) -> None:
    """py-amqp decodes bodies with any codec that a message names, also to lone surrogates."""
    content = {"content_type": "application/json", "content_encoding": "unicode_escape", "priority": 3}
    headers = {"task": f"{corpus.name}.command", "id": "surrogate", "lang": "py"}
    body = b'[["\\ud800"],{},{}]'
    put(channel, agent_queue(corpus.name).name, body, {"application_headers": headers, **content})
    dead_letter = next_dead_letter(app, corpus, "the surrogate", lambda letter: letter.message_id == "surrogate")
    assert (dead_letter.message_id, dead_letter.reason.isprintable()) == ("surrogate", True)
    assert pid_of(app, corpus.name) == first_pid


def test_request_for_an_unknown_method_fails_at_once(corpus: Corpus, app: AgentApp) -> None:
    """The caller gets an error at once, and the message becomes a dead letter."""
    app.conf.waooaw_agents = ()
    call = app.signature(f"{corpus.name}.echo", kwargs={"value": 1}).delay()
    assert call.get(timeout=20) == 1
    unknown = f"{corpus.name}.unheard_of"
    message = Message(from_agent="tests", to_agent=corpus.name)
    with app.connection_for_write() as connection, connection.channel() as channel:
        headers = {"task": unknown, "id": message.message_id, "lang": "py"}
        content = {"content_type": "application/json", "content_encoding": "utf-8", "priority": 3}
        put(channel, agent_queue(corpus.name).name, b"[[],{},{}]", {"application_headers": headers, **content})
    result = app.AsyncResult(message.message_id)
    until(result.ready, "the answer")
    assert type(result.result).__name__ == "NotRegistered"
    [dead_letter] = app.dead_letters.list(queue=agent_queue(corpus.name).name, reason="no handler", limit=1)
    assert (dead_letter.task, dead_letter.handler) == (unknown, "unheard_of")


def test_log_is_not_forged(corpus: Corpus, rabbitmq_broker: Broker) -> None:
    """The worker's log names the dead letters, and no line begins as a publisher chose."""
    log = (rabbitmq_broker.folder / f"{corpus.name}.log").read_text()
    assert "became a dead letter" in log
    assert not any(line.startswith("[2026-01-01") for line in log.splitlines())
