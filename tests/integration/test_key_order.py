"""The order of messages by key in the ledger, as several workers see it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import delete, select

from waooaw_celery import Message, MessageType, Priority
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import KeyedMessageRow
from waooaw_celery.ledger.database.rows import keyed_event_row, message_rows
from waooaw_celery.ledger.open_messages import count_open, expire_overdue
from waooaw_celery.ledger.resilience import key_statements
from waooaw_celery.ledger.resilience.key_order import KeyOrder
from waooaw_celery.ledger.write.statements import write
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.publish_options import PublishOptions
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.store.resilience.keyed_message import KeyedMessage, Place

RETENTION = RetentionPolicy.DAYS_30


class Agent:
    """The messages of an agent whose commands have keys, and its workers."""

    def __init__(self, database: Database) -> None:
        self.database, self.name = database, f"probe-{uuid4().hex[:8]}"

    def send(self, *keys: str, options: dict[str, Any] | None = None, **fields: Any) -> list[Message]:
        """Record messages that are sent together, each with a key."""
        sent = [
            Message(
                from_agent="tests",
                to_agent=self.name,
                message_type=MessageType.COMMAND,
                payload={"key": key},
                **fields,
            )
            for key in keys
        ]
        chosen = {each.message_id: PublishOptions(task=options or {}) for each in sent}
        rows = message_rows([(each, "command") for each in sent], RETENTION, chosen)
        with self.database.begin("record messages") as connection:
            write(connection, sorted(rows, key=lambda row: row.message_id))
        return sent

    def end(self, message: Message, event: MessageEvent = MessageEvent.HANDLED) -> None:
        """Record the end of a message."""
        fact = MessageFact(message_id=message.message_id, event=event)
        row = keyed_event_row(fact, RETENTION.until(message.sent_at), message.sent_at)
        with self.database.begin("record an end") as connection:
            write(connection, facts=[row])

    def worker(self, name: str = "one", **rule: Any) -> Worker:
        """Return a worker."""
        return Worker(self, name, rule)


class Worker:
    """A worker that has got some messages."""

    def __init__(self, agent: Agent, name: str, rule: dict[str, Any]) -> None:
        self._order = KeyOrder(agent.database, agent.name, name, ["command"], lambda _, message: key_of(message))
        self._rule = rule

    def take(self, *messages: Message, ended: Sequence[Message] = (), room: int = 10) -> list[str]:
        """Get messages, and return what is to be done with each."""
        keyed = [self._keyed(message) for message in messages]
        return self._step(keyed, keyed, ended, room)

    def ask(self, *messages: Message, ended: Sequence[Message] = (), room: int = 10) -> list[str]:
        """Ask again for messages that it has."""
        return self._step([], [self._keyed(message) for message in messages], ended, room)

    def cancelled_for(self, message: Message) -> list[str]:
        """Return which running messages are cancelled for one."""
        keyed = self._keyed(message)
        return list(self._order.step([], {}, 10, lambda _: [keyed])[message.message_id].cancelled)

    def renew(self, message: Message) -> None:
        """Say that it still handles a message."""
        self._order.renew([message.message_id], [])

    def _keyed(self, message: Message) -> KeyedMessage:
        key, rank = key_of(message), message.priority.rank
        return KeyedMessage(message_id=message.message_id, key=key, rank=rank, **self._rule)

    def _step(
        self, arrived: list[KeyedMessage], wanted: list[KeyedMessage], ended: Sequence[Message], room: int
    ) -> list[str]:
        def choose(places: Any) -> list[KeyedMessage]:
            assert all(isinstance(place, Place) for place in places.values())
            return wanted

        decisions = self._order.step(arrived, {each.message_id: key_of(each) for each in ended}, room, choose)
        return [decisions[each.message_id].turn.name.lower() for each in wanted]


def key_of(message: Message) -> str:
    """Return the key in a payload."""
    payload: Any = message.payload
    return str(payload["key"])


@pytest.fixture
def agent(database: Database) -> Agent:
    return Agent(database)


def test_a_message_waits_for_those_of_its_key_that_were_sent_before(agent: Agent) -> None:
    """Also if another worker has them and has not said so yet. Other keys do not matter."""
    first, other, second = agent.send("k", "other", "k")
    one, two = agent.worker("one"), agent.worker("two")
    assert two.take(second, other) == ["wait", "begin"]
    assert one.take(first) == ["begin"]
    assert two.ask(second) == ["wait"]
    agent.end(first)
    assert two.ask(second) == ["begin"]


def test_the_messages_of_a_call_keep_the_order_of_sending(agent: Agent) -> None:
    """Their rows are written in another order, that of their random ids."""
    messages = agent.send(*("k" for _ in range(30)))
    worker = agent.worker()
    for number, message in enumerate(messages):
        assert worker.take(*messages[number:]) == ["begin"] + ["wait"] * (29 - number)
        agent.end(message)


def test_an_attempt_that_failed_keeps_its_place(agent: Agent) -> None:
    """The next attempt may be another worker's; the next message waits for its end."""
    first, second = agent.send("k", "k")
    one, two = agent.worker("one"), agent.worker("two")
    assert one.take(first) == ["begin"]
    assert two.take(first, second) == ["wait", "wait"]  # it runs
    one.ask(ended=[first])  # it will be tried again
    assert two.ask(second, first) == ["wait", "begin"]
    agent.end(first)
    assert two.ask(second, ended=[first]) == ["begin"]


def test_a_killed_worker_holds_its_message_for_a_lease(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that renews it keeps it."""
    monkeypatch.setattr(key_statements, "LEASE", timedelta(seconds=-1))
    forget_statements()
    first, second = agent.send("k", "k")
    killed, other = agent.worker("killed"), agent.worker("other")
    assert killed.take(first) == ["begin"]
    assert other.take(second, first) == ["wait", "begin"]  # the lease is over: the message comes first again
    monkeypatch.undo()
    forget_statements()
    other.renew(first)
    assert agent.worker("third").take(first) == ["wait"]


def test_a_message_that_never_comes_is_overtaken(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker may have lost it: it holds up its key for minutes, and not for ever."""
    _, second = agent.send("k", "k")
    worker = agent.worker()
    assert worker.take(second) == ["wait"]
    monkeypatch.setattr(key_statements, "EXPECTED", timedelta(seconds=-1))
    forget_statements()
    assert agent.worker("other").take(*agent.send("k")) == ["wait"]  # until then, the first is expected
    third, fourth = agent.send("new", "new")
    assert agent.worker("another").take(fourth) == ["begin"]
    assert agent.worker("another").take(third) == ["begin"]
    monkeypatch.undo()
    forget_statements()


def test_the_next_attempt_is_expected_for_long(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is behind all other messages in the queue."""
    monkeypatch.setattr(key_statements, "EXPECTED", timedelta(seconds=-1))
    forget_statements()
    first, second = agent.send("k", "k")
    worker = agent.worker()
    assert worker.take(first) == ["begin"]
    worker.ask(ended=[first])
    assert agent.worker("other").take(second) == ["wait"]
    monkeypatch.undo()
    forget_statements()


def test_an_urgent_message_does_not_wait_for_a_less_urgent_one(agent: Agent) -> None:
    """RabbitMQ delivers it before. But it waits for one that runs."""
    [low] = agent.send("k", priority=Priority.LOW)
    [urgent] = agent.send("k", priority=Priority.URGENT)
    assert agent.worker().take(low, urgent, room=1) == ["begin", "wait"]
    [low] = agent.send("other", priority=Priority.LOW)
    [urgent] = agent.send("other", priority=Priority.URGENT)
    assert agent.worker("two").take(urgent, low) == ["begin", "wait"]


def test_several_messages_of_a_key_may_run(agent: Agent) -> None:
    """As many as its handler allows, the first ones first."""
    messages = agent.send("k", "k", "k")
    assert agent.worker(most=2).take(*reversed(messages)) == ["wait", "begin", "begin"]


def test_a_worker_begins_no_more_than_it_has_room_for(agent: Agent) -> None:
    """A message that waits in its pool would hold its key."""
    messages = agent.send("a", "b", "c")
    assert agent.worker().take(*messages, room=2) == ["begin", "begin", "wait"]
    assert agent.worker("other").take(messages[2]) == ["begin"]


def test_a_message_that_is_not_due_holds_up_no_other(agent: Agent) -> None:
    """One that is due takes its place by that time."""
    at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    agent.send("k", options={"eta": at})
    due = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    [was_due] = agent.send("k", options={"eta": due})
    [second] = agent.send("k")
    worker = agent.worker()
    assert worker.take(second) == ["wait"]
    assert worker.take(was_due) == ["begin"]


def test_an_expired_message_holds_up_no_other(agent: Agent) -> None:
    """The broker may have dropped it."""
    agent.send("k", ttl_seconds=0.001)
    assert agent.worker().take(*agent.send("k")) == ["begin"]


def test_a_message_that_has_ended_gets_no_place(agent: Agent) -> None:
    """Celery drops it; one that was lost by a crash of the database is noted again."""
    first, second = agent.send("k", "k")
    worker = agent.worker()
    assert worker.take(first, second) == ["begin", "wait"]
    agent.end(second, MessageEvent.CANCELLED)
    assert worker.ask(second) == ["ended"]
    with agent.database.begin("lose rows") as connection:
        connection.execute(delete(KeyedMessageRow))
    assert worker.ask(first) == ["register"]


def test_a_message_is_dropped_while_its_key_is_busy(agent: Agent) -> None:
    """The next one is not held up by it."""
    first, second = agent.send("k", "k")
    worker = agent.worker(on_busy="drop")
    assert worker.take(first, second) == ["begin", "drop"]
    agent.end(first)
    assert worker.take(*agent.send("k")) == ["begin"]
    assert worker.ask(second) == ["drop"]


def test_the_newest_message_cancels_the_running_one(agent: Agent) -> None:
    """Those between are dropped."""
    worker = agent.worker(on_busy="cancel")
    [first] = agent.send("k")
    assert worker.take(first) == ["begin"]
    second, third = agent.send("k", "k")
    assert worker.take(second, third) == ["drop", "wait"]
    assert worker.cancelled_for(third) == [first.message_id]
    agent.end(first, MessageEvent.CANCELLED)
    assert worker.ask(third) == ["begin"]


def test_the_keys_of_ended_messages_are_forgotten(agent: Agent) -> None:
    """By the sweep, if their worker could not."""
    messages = agent.send("k", "k", "k")
    assert count_open(agent.database, agent.name, "tests") == 3
    assert count_open(agent.database, agent.name, "other") == 0
    agent.worker().take(*messages)
    agent.end(messages[0])
    expire_overdue(agent.database)
    left = select(KeyedMessageRow.message_id).where(KeyedMessageRow.agent == agent.name)
    with agent.database.begin("count") as connection:
        assert set(connection.scalars(left)) == {each.message_id for each in messages[1:]}


def test_two_workers_that_ask_at_once_do_not_both_begin(agent: Agent) -> None:
    """One after the other decides about a key."""
    for _ in range(10):
        [message] = agent.send("k")
        [later] = agent.send("k")
        begun: list[str] = []
        start = threading.Barrier(2)

        def ask(name: str, own: Message, start: threading.Barrier = start, begun: list[str] = begun) -> None:
            worker = agent.worker(name)
            start.wait(10)
            begun.extend(worker.take(own))

        threads = [threading.Thread(target=ask, args=each) for each in (("one", message), ("two", later))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(begun) == ["begin", "wait"]
        agent.end(message)
        agent.end(later)


def forget_statements() -> None:
    """Have statements built again, with other times."""
    for made in (key_statements.insert, key_statements.begin, key_statements.expect, key_statements.renew):
        made.cache_clear()
