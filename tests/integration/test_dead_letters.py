"""What a handler gave up is a dead letter, on Redis and on RabbitMQ: listed, sent again, discarded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import chain
from support import Broker, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, MessageType, Priority
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter
from waooaw_celery.errors import InvalidMessage, RemoteError, UnknownDeadLetter
from waooaw_celery.ledger.trail import MessageAuditTrail

pytestmark = pytest.mark.usefixtures("dead_letters_alone")


@pytest.fixture
def probe(third: str) -> str:
    """Name of an agent that can still tell all that it has seen."""
    return third


@pytest.fixture(autouse=True)
def clean(app: AgentApp, probe: str) -> Iterator[None]:
    """Leave no letters behind in a broker that outlives the test."""
    yield
    app.dead_letters.discard(app.dead_letters.list(agent=probe, limit=1000), reason="a test's")


def letters(app: AgentApp, agent: str, **filters: Any) -> Sequence[DeadLetter]:
    return app.dead_letters.list(agent=agent, **filters)


def given_up(app: AgentApp, agent: str, payload: Any, **fields: Any) -> tuple[Message, DeadLetter]:
    """Send a message that its handler gives up, and return it with its letter."""
    message = Message(from_agent="boss", to_agent=agent, payload=payload, **fields)
    MessageBus(app).send(message)
    assert settled(app, message.message_id) is MessageStatus.FAILED
    [letter] = [each for each in letters(app, agent) if each.message_id == message.message_id]
    return message, letter


def test_what_a_handler_gave_up_is_sent_again_as_a_new_message(
    app: AgentApp, broker: Broker, probe: str, tmp_path: Path
) -> None:
    """The same handler gets the same payload from the same sender, caused by the old one, which says so."""
    needed = tmp_path / "needed"
    payload = {"needs": str(needed), "at": datetime(2026, 1, 1, tzinfo=UTC), "raw": b"\x00\xff"}
    old, letter = given_up(
        app, probe, payload, priority=Priority.HIGH, ttl_seconds=500.0, correlation_id="thread-1"
    )
    assert letter.reason == "FileNotFoundError: there is no needed"
    assert (letter.task, letter.handler, letter.from_agent) == (f"{probe}.command", "command", "boss")
    assert (letter.queue, letter.resent) == (f"agent.{probe}", 0)
    assert timedelta(0) <= datetime.now(UTC) - letter.at < timedelta(minutes=1)
    needed.touch()
    [outcome] = app.dead_letters.retry([letter.id], by="ada")
    assert (outcome.id, outcome.message_id, outcome.refused) == (letter.id, old.message_id, None)
    assert outcome.new_id not in (None, old.message_id)
    assert settled(app, str(outcome.new_id)) is MessageStatus.HANDLED
    assert not letters(app, probe)
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
        told = [record.receipt.message_id for record in trail.conversation(old.message_id)]
        assert told == [old.message_id, outcome.new_id]


def test_a_letter_that_dies_again_counts_and_is_refused_in_the_end(app: AgentApp, probe: str) -> None:
    """Three times a copy is sent, then somebody must insist; each copy is caused by the last."""
    _, letter = given_up(app, probe, {"fail": "never"})
    for count in (1, 2, 3):
        [outcome] = app.dead_letters.retry([letter])
        assert settled(app, str(outcome.new_id)) is MessageStatus.FAILED
        [letter] = letters(app, probe)
        assert (letter.message_id, letter.resent) == (outcome.new_id, count)
    [outcome] = app.dead_letters.retry([letter])
    assert outcome.new_id is None
    assert "already retried 3 times" in (outcome.refused or "")
    assert [each.id for each in letters(app, probe)] == [letter.id]
    [outcome] = app.dead_letters.retry([letter], again=True)
    assert settled(app, str(outcome.new_id)) is MessageStatus.FAILED


def test_of_one_letter_there_is_never_a_second_message(app: AgentApp, probe: str, tmp_path: Path) -> None:
    """Two who retry the same letter, or one who is cut off before it is removed, send it once."""
    needed = tmp_path / "needed"
    _, letter = given_up(app, probe, {"needs": str(needed)})
    needed.touch()
    [first] = app.dead_letters.retry([letter])
    assert settled(app, str(first.new_id)) is MessageStatus.HANDLED
    [second] = app.dead_letters.retry([letter])
    assert (second.new_id, second.refused) == (first.new_id, None)
    assert Requests(app).request(probe, "echo", {"value": 1}) == 1
    assert MessageBus(app).receipt(str(first.new_id)).attempts == 1


def test_who_waits_for_an_answer_gets_the_error_and_there_is_no_letter(app: AgentApp, probe: str) -> None:
    """A request's caller is told, whether it waits or gets the answer as a message."""
    with pytest.raises(RemoteError, match="no such page"):
        Requests(app).request(probe, "fail", {"text": "no such page"})
    asked = Requests(app).request(
        probe, "ask_for_reply", {"to_agent": probe, "method": "fail", "params": {"text": "no such book"}}
    )
    until(
        lambda: any(each["message_id"] == asked for each in Requests(app).request(probe, "replies")), "the reply"
    )
    assert not letters(app, probe)


def test_a_reply_that_its_handler_gave_up_is_a_letter(app: AgentApp, probe: str) -> None:
    """Nobody is told when the handler of an answer fails: the answer is kept, and can be handled again."""
    Requests(app).request(probe, "ask_badly", {"to_agent": probe, "method": "echo", "params": {"value": 7}})
    until(lambda: letters(app, probe), "the letter")
    [letter] = letters(app, probe)
    assert (letter.handler, letter.reason) == ("reply_badly", "ValueError: no such reply")
    [outcome] = app.dead_letters.retry([letter])
    assert settled(app, str(outcome.new_id)) is MessageStatus.FAILED
    [again] = letters(app, probe)
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
def test_every_way_to_give_up_is_one_letter(
    app: AgentApp, probe: str, payload: Any, options: dict[str, Any], reason: str
) -> None:
    """Also what Celery tells twice, or tells of in the worker's own process."""
    sent = app.signature(f"{probe}.command", args=(payload,)).apply_async(**options)
    assert settled(app, sent.id) is MessageStatus.FAILED
    until(lambda: letters(app, probe), "the letter")
    assert Requests(app).request(probe, "echo", {"value": 1}, timeout=20) == 1
    [letter] = letters(app, probe)
    assert (letter.message_id, letter.reason.startswith(reason)) == (sent.id, True)


def test_what_was_to_follow_follows_when_it_is_sent_again(app: AgentApp, probe: str, tmp_path: Path) -> None:
    """The next step of a chain begins when the step before it was sent again and is done."""
    needed, mark = tmp_path / "needed", tmp_path / "marks"
    mark.mkdir()
    first = app.signature(f"{probe}.command", args=({"needs": str(needed)},))
    then = app.signature(f"{probe}.command", args=({"touch": str(mark)},), immutable=True)
    chain(first, then).apply_async()
    until(lambda: letters(app, probe), "the letter")
    needed.touch()
    app.dead_letters.retry(letters(app, probe))
    until(lambda: list(mark.iterdir()), "the next step")


def test_letters_are_found_by_what_they_have(app: AgentApp, probe: str) -> None:
    """By agent, queue, reason and time, the newest first, and no more than asked for; each by its id."""
    made = [given_up(app, probe, {"fail": f"no {word}"})[1] for word in ("apple", "Pear", "pear")]
    assert [each.id for each in letters(app, probe)] == [each.id for each in reversed(made)]
    assert [each.id for each in letters(app, probe, limit=2)] == [made[2].id, made[1].id]
    assert [each.id for each in letters(app, probe, reason="PEAR")] == [made[2].id, made[1].id]
    assert [each.id for each in letters(app, probe, since=made[2].at)] == [made[2].id]
    assert letters(app, probe, queue="agent.nobody") == []
    assert app.dead_letters.get(made[0].id) == made[0]
    assert {each.id for each in app.dead_letters.list(ids=[made[0].id, made[2].id])} == {made[0].id, made[2].id}
    for unknown in ("0-1", "nonsense", uuid4().hex):
        with pytest.raises(UnknownDeadLetter):
            app.dead_letters.get(unknown)
    for impossible in ({"limit": 0}, {"since": datetime(2026, 1, 1)}):
        with pytest.raises(InvalidMessage):
            app.dead_letters.list(**impossible)  # type: ignore[arg-type]


def test_a_letter_is_discarded_with_a_word(app: AgentApp, broker: Broker, probe: str) -> None:
    """It is gone, and the ledger says who did it and why."""
    old, letter = given_up(app, probe, {"fail": "never"})
    [done, unknown] = sorted(
        app.dead_letters.discard([letter.id, "1-1"], reason="a duplicate", by="ada"),
        key=lambda each: each.id == "1-1",
    )
    assert (done.refused, unknown.refused) == (None, "there is no such dead letter")
    assert not letters(app, probe)
    if broker.database_url is not None:
        last = MessageAuditTrail(app.ledger).receipt(old.message_id).events[-1]
        assert (last.event, last.error) == ("discarded", "by ada: a duplicate")
    assert MessageBus(app).receipt(old.message_id).status is MessageStatus.FAILED


def test_what_cannot_be_read_is_refused_and_stays(app: AgentApp, probe: str) -> None:
    """Bytes that are no message, a task that is no agent's, an envelope of tomorrow: each with its reason."""
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
        b"\xff\x00 garbage": "no JSON",
        json.dumps(task).encode(): "no agent's handler",
        json.dumps(tomorrow).encode(): "upgrade waooaw_celery",
        json.dumps(stranger).encode(): "unheard_of",
    }
    for raw, reason in cases.items():
        app.dead_letters.add(f"agent.{probe}", "a test", raw)
        [letter] = letters(app, probe)
        assert letter.raw == raw
        [outcome] = app.dead_letters.retry([letter])
        assert reason in (outcome.refused or ""), outcome
        assert [each.id for each in letters(app, probe)] == [letter.id]
        app.dead_letters.discard([letter], reason="tried")


def test_an_acknowledgement_and_a_query_are_kept_alike(app: AgentApp, probe: str) -> None:
    """The type of the message is the letter's: it goes to the same handler again."""
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
    [outcome] = app.dead_letters.retry(letters(app, probe))
    assert settled(app, str(outcome.new_id)) is MessageStatus.HANDLED
    [seen] = [each for each in Requests(app).request(probe, "seen") if each["message_id"] == outcome.new_id]
    assert (seen["type"], seen["payload"], seen["from"]) == ("ack", 7, "boss")
