"""Dead letters of failed handlers, on Redis and on RabbitMQ: listed, retried, discarded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import chain
from kombu import Connection
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, MessageType, Priority
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.broker.dead_letters import amqp
from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter
from waooaw_celery.broker.dead_letters.queue import UNKNOWN
from waooaw_celery.errors import BrokerUnavailable, InvalidMessage, RemoteError, UnknownDeadLetter
from waooaw_celery.ledger.trail import MessageAuditTrail

pytestmark = pytest.mark.usefixtures("dead_letters_alone")


@pytest.fixture
def probe(third: str) -> str:
    """The name of an agent that reports the messages it has handled."""
    return third


@pytest.fixture(autouse=True)
def clean(app: AgentApp, probe: str) -> Iterator[None]:
    """Remove the dead letters of the test from a broker that outlives it."""
    yield
    app.dead_letters.discard(app.dead_letters.list(agent=probe, limit=1000), reason="end of the test")


def dead_letters_of(app: AgentApp, agent: str, **filters: Any) -> Sequence[DeadLetter]:
    return app.dead_letters.list(agent=agent, **filters)


def fail(app: AgentApp, agent: str, payload: Any, **fields: Any) -> tuple[Message, DeadLetter]:
    """Send a message whose handler fails, and return it with its dead letter."""
    message = Message(from_agent="boss", to_agent=agent, payload=payload, **fields)
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.FAILED
    [letter] = [each for each in dead_letters_of(app, agent) if each.message_id == message.message_id]
    return message, letter


def test_many_look_at_the_same_time(app: AgentApp, probe: str) -> None:
    """Each thread sees all dead letters, though on RabbitMQ a reader holds them for a moment."""
    app.dead_letters.add(f"agent.{probe}", "made by the test", *(b"raw" for _ in range(30)))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: len(dead_letters_of(app, probe)), range(24)))
    assert found == [30] * 24


def test_many_processes_look_at_the_same_time(broker: Broker, app: AgentApp, probe: str) -> None:
    """Each application sees all dead letters, and what one discards is gone for all: readers take turns."""
    app.dead_letters.add(f"agent.{probe}", "made by the test", *(b"raw" for _ in range(20)))
    with ExitStack() as stack, ThreadPoolExecutor(6) as threads:
        apps = [stack.enter_context(closing(broker.app())) for _ in range(6)]
        found = list(threads.map(lambda number: len(dead_letters_of(apps[number % 6], probe)), range(18)))
        assert found == [20] * 18
        letters = dead_letters_of(app, probe)
        halves = threads.map(
            lambda number: apps[number].dead_letters.discard(letters[number::6], reason="tests"), range(6)
        )
        assert sum(len(outcomes) for outcomes in halves) == 20
    assert dead_letters_of(app, probe) == []


@pytest.mark.parametrize("broker", [pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)], indirect=True)
def test_a_reader_that_does_not_end_is_named(
    broker: Broker, app: AgentApp, probe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others get an error instead of a part of the dead letters, and read them once the connection is closed."""
    app.dead_letters.add(f"agent.{probe}", "made by the test", b"raw")
    monkeypatch.setattr(amqp, "TURN_SECONDS", 0.5)
    with Connection(broker.url) as reader:
        reader.default_channel.queue_declare(amqp.READER_KEY, exclusive=True)
        with pytest.raises(BrokerUnavailable, match="one reader at a time: try again"):
            dead_letters_of(app, probe)
    until(lambda: _readable(app, probe), "the dead letters")


def _readable(app: AgentApp, agent: str) -> bool:
    with suppress(BrokerUnavailable):
        return len(dead_letters_of(app, agent)) == 1
    return False


def test_retry_sends_a_new_message(app: AgentApp, broker: Broker, probe: str, tmp_path: Path) -> None:
    """The same handler gets the same payload from the same sender. The old message's receipt records the retry."""
    needed = tmp_path / "needed"
    payload = {"needs": str(needed), "at": datetime(2026, 1, 1, tzinfo=UTC), "raw": b"\x00\xff"}
    old, letter = fail(app, probe, payload, priority=Priority.HIGH, ttl_seconds=500.0, correlation_id="thread-1")
    assert letter.reason == "FileNotFoundError: there is no needed"
    assert (letter.task, letter.handler, letter.from_agent) == (f"{probe}.command", "command", "boss")
    assert (letter.queue, letter.resent) == (f"agent.{probe}", 0)
    assert timedelta(0) <= datetime.now(UTC) - letter.at < timedelta(minutes=1)
    needed.touch()
    [outcome] = app.dead_letters.retry([letter.id], by="ada")
    assert (outcome.id, outcome.message_id, outcome.refused) == (letter.id, old.message_id, None)
    assert outcome.new_id not in (None, old.message_id)
    assert settled(app, str(outcome.new_id)) is MessageStatus.HANDLED
    assert not dead_letters_of(app, probe)
    [seen] = [each for each in Requests(app).request(probe, "seen") if each["message_id"] == outcome.new_id]
    assert (seen["from"], seen["payload"], seen["priority"]) == ("boss", old.payload, "HIGH")
    assert (seen["causation_id"], seen["conversation_id"]) == (old.message_id, old.message_id)
    assert seen["correlation_id"] == "thread-1"
    assert datetime.fromisoformat(seen["expires_at"]) - datetime.fromisoformat(seen["sent_at"]) == timedelta(
        0, 500
    )
    assert MessageBus(app).receipt(old.message_id).status is MessageStatus.FAILED
    if broker.database_url is not None:
        trail = MessageAuditTrail(app.ledger)
        last = trail.receipt(old.message_id).events[-1]
        assert (last.event, last.error) == ("resent", f"as {outcome.new_id} by ada")
        recorded = [record.receipt.message_id for record in trail.conversation(old.message_id)]
        assert recorded == [old.message_id, outcome.new_id]


def test_retries_are_limited(app: AgentApp, probe: str) -> None:
    """After three retries, a fourth needs ``again=True``. Each copy is caused by the one before."""
    _, letter = fail(app, probe, {"fail": "never"})
    for count in (1, 2, 3):
        [outcome] = app.dead_letters.retry([letter])
        assert settled(app, str(outcome.new_id)) is MessageStatus.FAILED
        [letter] = dead_letters_of(app, probe)
        assert (letter.message_id, letter.resent) == (outcome.new_id, count)
    [outcome] = app.dead_letters.retry([letter])
    assert outcome.new_id is None
    assert "already retried 3 times" in (outcome.refused or "")
    assert [each.id for each in dead_letters_of(app, probe)] == [letter.id]
    [outcome] = app.dead_letters.retry([letter], again=True)
    assert settled(app, str(outcome.new_id)) is MessageStatus.FAILED


def test_dead_letter_is_sent_once(app: AgentApp, probe: str, tmp_path: Path) -> None:
    """Two callers who retry it, or one who fails before it is removed, send one message."""
    needed = tmp_path / "needed"
    _, letter = fail(app, probe, {"needs": str(needed)})
    needed.touch()
    [first] = app.dead_letters.retry([letter])
    assert settled(app, str(first.new_id)) is MessageStatus.HANDLED
    [second] = app.dead_letters.retry([letter])
    assert (second.new_id, second.refused) == (first.new_id, None)
    assert Requests(app).request(probe, "echo", {"value": 1}) == 1
    assert MessageBus(app).receipt(str(first.new_id)).attempts == 1


def test_failed_request_is_not_a_dead_letter(app: AgentApp, probe: str) -> None:
    """Its caller gets the error, whether it waits or gets the answer as a message."""
    with pytest.raises(RemoteError, match="no such page"):
        Requests(app).request(probe, "fail", {"text": "no such page"})
    asked = Requests(app).request(
        probe, "ask_for_reply", {"to_agent": probe, "method": "fail", "params": {"text": "no such book"}}
    )
    until(
        lambda: any(each["message_id"] == asked for each in Requests(app).request(probe, "replies")), "the reply"
    )
    assert not dead_letters_of(app, probe)


def test_reply_whose_handler_fails_becomes_a_dead_letter(app: AgentApp, probe: str) -> None:
    """No caller gets the error of a reply's handler, so the reply is stored and can be retried."""
    Requests(app).request(probe, "ask_badly", {"to_agent": probe, "method": "echo", "params": {"value": 7}})
    until(lambda: dead_letters_of(app, probe), "the dead letter")
    [letter] = dead_letters_of(app, probe)
    assert (letter.handler, letter.reason) == ("reply_badly", "ValueError: no such reply")
    [outcome] = app.dead_letters.retry([letter])
    assert settled(app, str(outcome.new_id)) is MessageStatus.FAILED
    [again] = dead_letters_of(app, probe)
    assert again.resent == 1


@pytest.mark.parametrize(
    ("payload", "options", "reason"),
    [
        ({"reject": "not mine"}, {}, "Reject"),
        ({"exit": 3}, {}, "HandlerExited"),
        ({"exhaust": "too much"}, {}, "HandlerExited"),
        ({"sleep": 30}, {"time_limit": 1}, "TimeLimitExceeded"),
        ({"sleep": 30}, {"soft_time_limit": 1}, "SoftTimeLimitExceeded"),
        ({"fail_times": 9, "max_retries": 1}, {}, "TimeoutError"),
    ],
    ids=str,
)
def test_each_kind_of_failure_makes_one_dead_letter(
    app: AgentApp, probe: str, payload: Any, options: dict[str, Any], reason: str
) -> None:
    """Also failures that Celery reports twice, or in the worker's main process."""
    sent = app.signature(f"{probe}.command", args=(payload,)).apply_async(**options)
    assert settled(app, sent.id) is MessageStatus.FAILED
    until(lambda: dead_letters_of(app, probe), "the dead letter")
    assert Requests(app).request(probe, "echo", {"value": 1}, timeout=20) == 1
    [letter] = dead_letters_of(app, probe)
    assert (letter.message_id, letter.reason.startswith(reason)) == (sent.id, True)


def test_retry_continues_a_chain(app: AgentApp, probe: str, tmp_path: Path) -> None:
    """After the retried step of a chain, the next step is started."""
    needed, mark = tmp_path / "needed", tmp_path / "marks"
    mark.mkdir()
    first = app.signature(f"{probe}.command", args=({"needs": str(needed)},))
    then = app.signature(f"{probe}.command", args=({"touch": str(mark)},), immutable=True)
    chain(first, then).apply_async()
    until(lambda: dead_letters_of(app, probe), "the dead letter")
    needed.touch()
    app.dead_letters.retry(dead_letters_of(app, probe))
    until(lambda: list(mark.iterdir()), "the next step")


def test_dead_letters_can_be_filtered(app: AgentApp, probe: str) -> None:
    """By agent, queue, reason and time, the newest first, up to the limit; and each by its id."""
    made = [fail(app, probe, {"fail": f"no {word}"})[1] for word in ("apple", "Pear", "pear")]
    assert [each.id for each in dead_letters_of(app, probe)] == [each.id for each in reversed(made)]
    assert [each.id for each in dead_letters_of(app, probe, limit=2)] == [made[2].id, made[1].id]
    assert [each.id for each in dead_letters_of(app, probe, reason="PEAR")] == [made[2].id, made[1].id]
    assert [each.id for each in dead_letters_of(app, probe, since=made[2].at)] == [made[2].id]
    assert dead_letters_of(app, probe, queue="agent.nobody") == []
    assert app.dead_letters.get(made[0].id) == made[0]
    assert {each.id for each in app.dead_letters.list(ids=[made[0].id, made[2].id])} == {made[0].id, made[2].id}
    for unknown in ("0-1", "nonsense", uuid4().hex):
        with pytest.raises(UnknownDeadLetter):
            app.dead_letters.get(unknown)
    for impossible in ({"limit": 0}, {"since": datetime(2026, 1, 1)}):
        with pytest.raises(InvalidMessage):
            app.dead_letters.list(**impossible)  # type: ignore[arg-type]


def test_discard_removes_a_dead_letter(app: AgentApp, broker: Broker, probe: str) -> None:
    """The dead letter is removed, and the ledger records by whom and why."""
    old, letter = fail(app, probe, {"fail": "never"})
    [done, unknown] = sorted(
        app.dead_letters.discard([letter.id, "1-1"], reason="a duplicate", by="ada"),
        key=lambda each: each.id == "1-1",
    )
    assert (done.refused, unknown.refused) == (None, UNKNOWN)
    assert not dead_letters_of(app, probe)
    if broker.database_url is not None:
        last = MessageAuditTrail(app.ledger).receipt(old.message_id).events[-1]
        assert (last.event, last.error) == ("discarded", "by ada: a duplicate")
    assert MessageBus(app).receipt(old.message_id).status is MessageStatus.FAILED


def test_retry_leaves_unreadable_dead_letters(app: AgentApp, probe: str) -> None:
    """Garbage, a task of no agent, a newer envelope: each stays, with its reason."""
    task: dict[str, Any] = {
        "body": "[[1],{},{}]",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "celery.backend_cleanup", "id": "x"},
        "properties": {"delivery_info": {}},
    }
    tomorrow = {**task, "headers": {"task": f"{probe}.command", "id": "y", "waooaw": {"version": 99}}}
    stranger = {**task, "headers": {"task": f"{probe}.unheard_of", "id": "z"}}
    cases = {
        b"\xff\x00 garbage": "not readable JSON",
        json.dumps(task).encode(): "not a handler of an agent",
        json.dumps(tomorrow).encode(): "upgrade waooaw_celery",
        json.dumps(stranger).encode(): "unheard_of",
    }
    for raw, reason in cases.items():
        app.dead_letters.add(f"agent.{probe}", "a test", raw)
        [letter] = dead_letters_of(app, probe)
        assert letter.raw == raw
        [outcome] = app.dead_letters.retry([letter])
        assert reason in (outcome.refused or ""), outcome
        assert [each.id for each in dead_letters_of(app, probe)] == [letter.id]
        app.dead_letters.discard([letter], reason="tried")


def test_retry_keeps_the_message_type(app: AgentApp, probe: str) -> None:
    """An ACK goes to the ``ack`` handler again."""
    message = Message(from_agent="boss", to_agent=probe, message_type=MessageType.ACK)
    item = {
        "body": "[[7],{},{}]",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            "task": f"{probe}.ack",
            "id": message.message_id,
            "root_id": message.message_id,
            "waooaw": message.evolve(correlation_id=message.message_id).to_envelope(),
        },
        "properties": {"delivery_info": {}},
    }
    app.dead_letters.add(f"agent.{probe}", "a test", json.dumps(item).encode())
    [outcome] = app.dead_letters.retry(dead_letters_of(app, probe))
    assert settled(app, str(outcome.new_id)) is MessageStatus.HANDLED
    [seen] = [each for each in Requests(app).request(probe, "seen") if each["message_id"] == outcome.new_id]
    assert (seen["type"], seen["payload"], seen["from"]) == ("ack", 7, "boss")
