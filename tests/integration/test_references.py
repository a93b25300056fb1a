"""Large payloads travel by reference: on both brokers, in both ledgers, in a folder, by every kind of send."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from lost_messages import recover
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from support import Broker, pass_time, queue_length, settled, until

from waooaw_celery import (
    AgentApp,
    Message,
    MessageAuditTrail,
    MessageBus,
    MessageStatus,
    RequestResponseHandler,
)
from waooaw_celery.agents import EventBus, HoldKind, Retention, erase
from waooaw_celery.errors import ReferenceStoreUnavailable, UnknownMessage
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.maintenance.evidence.export import export_messages
from waooaw_celery.maintenance.evidence.selection import Selection
from waooaw_celery.maintenance.large_payloads import purge_payloads
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.store.subscriptions import Subscription

#: It hardly becomes smaller when it is compressed.
LARGE = {"text": Random(7).randbytes(30_000).hex(), "half": 2.5}  # noqa: S311 - no secret
ABOVE = 2_000


@dataclass
class Stored:
    """A store of large payloads, and the application that sends to it.

    Attributes:
        broker: the broker.
        app: the application of the sender.
        url: the setting ``waooaw_reference_store``; None: the ledger's database.
        folder: the folder, where it is one.
    """

    broker: Broker
    app: AgentApp
    url: str | None
    folder: Path

    def send(self, agent: str, payload: Any = LARGE, **fields: Any) -> str:
        """Send a command, and return its id."""
        message = Message(from_agent="tests", to_agent=agent, payload=payload, **fields)
        return MessageBus(self.app).send(message).message_id

    def keys(self) -> list[str]:
        """Return the keys of all stored payloads."""
        if self.url is not None:
            return sorted("/".join(path.parts[-2:]) for path in self.folder.rglob("*") if path.is_file())
        with self.app.database.begin("list") as connection:
            return sorted(connection.scalars(text("SELECT key FROM waooaw_objects")))

    def change(self, key: str, content: bytes | None) -> bytes:
        """Replace or remove a payload, and return what was there."""
        if self.url is not None:
            path = self.folder / key
            before = path.read_bytes() if path.exists() else b""
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
            return before
        with self.app.database.begin("change") as connection:
            query = text("SELECT content FROM waooaw_objects WHERE key = :key")
            before = bytes(connection.scalar(query, {"key": key}) or b"")
            statement = text("UPDATE waooaw_objects SET content = :content WHERE key = :key")
            connection.execute(statement, {"key": key, "content": content})
        return before

    def pass_days(self, days: int) -> None:
        """Make what the ledger knows of payloads older."""
        for table, column in (("waooaw_objects", "stored_at"), ("waooaw_object_uses", "used_at")):
            with self.app.database.begin("age") as connection:
                then = datetime.now(UTC) - timedelta(days=days)
                connection.execute(text(f"UPDATE {table} SET {column} = :then"), {"then": then})


@pytest.fixture(
    params=[
        "valkey-database",
        "valkey-folder",
        pytest.param("rabbitmq-database", marks=pytest.mark.rabbitmq),
        pytest.param("rabbitmq-folder", marks=pytest.mark.rabbitmq),
    ]
)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stored]:
    """Each broker with each store: the ledger's database, or a folder, on RabbitMQ without a ledger."""
    kind, place = request.param.split("-")
    broker: Broker = request.getfixturevalue("rabbitmq_broker" if kind == "rabbitmq" else "ledger_broker")
    if kind == "rabbitmq" and place == "database":
        ledger: Broker = request.getfixturevalue("ledger_broker")
        broker = replace(broker, folder=tmp_path, database_url=ledger.database_url)
    folder = tmp_path / "payloads"
    url = f"file://{folder}" if place == "folder" else None
    with closing(broker.app(waooaw_reference_above=ABOVE, waooaw_reference_store=url)) as app:
        yield Stored(broker, app, url, folder)


@pytest.fixture(params=["database", "folder"])
def ledgered(request: pytest.FixtureRequest, ledger_broker: Broker, tmp_path: Path) -> Iterator[Stored]:
    """Each store in turn, on Valkey with the ledger."""
    folder = tmp_path / "payloads"
    url = f"file://{folder}" if request.param == "folder" else None
    with closing(ledger_broker.app(waooaw_reference_above=ABOVE, waooaw_reference_store=url)) as app:
        yield Stored(ledger_broker, app, url, folder)


@pytest.fixture
def reader(stored: Stored) -> Iterator[str]:
    """An agent whose worker loads payloads from the store."""
    name = stored.broker.name()
    with stored.broker.running(name, stored.app, waooaw_reference_store=stored.url):
        yield name


def stopped_agent(stored: Stored) -> str:
    """Return the name of an agent that is declared, and whose worker does not run."""
    name = stored.broker.name()
    stored.app.registry.declare(name, ["command"], f"{name}@nowhere", lifetime=600.0)
    return name


def seen(app: AgentApp, agent: str) -> list[Any]:
    """Return the payloads of the messages that the agent has handled."""
    found: list[dict[str, Any]] = RequestResponseHandler(app).request(agent, "seen", timeout=20)
    return [each["payload"] for each in found]


def test_a_handler_gets_a_large_payload(stored: Stored, reader: str) -> None:
    """A message, a request and a ``.delay`` whose payloads are large arrive as if they had travelled."""
    app = stored.app
    assert settled(app, stored.send(reader)) is MessageStatus.HANDLED
    assert RequestResponseHandler(app).request(reader, "echo", {"value": LARGE}, timeout=20) == LARGE
    app.signature(f"{reader}.command", args=(LARGE,)).delay()
    until(lambda: len(seen(app, reader)) == 2, "the .delay")
    assert seen(app, reader) == [LARGE, LARGE]
    small = {"n": 1}
    bus = MessageBus(app)
    messages = [Message(from_agent="tests", to_agent=reader, payload=payload) for payload in (small, LARGE, small)]
    for receipt in bus.send_many(messages):
        assert settled(app, receipt.message_id) is MessageStatus.HANDLED
    assert sorted(map(str, seen(app, reader)[2:])) == sorted(map(str, (small, LARGE, small)))


def test_a_retry_carries_the_same_reference(stored: Stored, reader: str) -> None:
    """A message that is tried three times is stored once."""
    before = stored.keys()
    id_ = stored.send(reader, {**LARGE, "fail_times": 2})
    assert settled(stored.app, id_) is MessageStatus.HANDLED
    assert MessageBus(stored.app).receipt(id_).attempts == 3
    assert len(stored.keys()) == len(before) + 1


def test_only_the_reference_travels(stored: Stored) -> None:
    """The broker holds less than a kilobyte of body for a message of sixty."""
    name = stopped_agent(stored)
    stored.send(name)
    with stored.app.connection_for_write() as connection, connection.channel() as channel:
        queue = agent_queue(name)(channel)
        message = queue.get(no_ack=True)
        assert len(message.body) < 1000
        queue.delete()


def test_a_message_that_has_expired_is_not_loaded(stored: Stored) -> None:
    """It ends as EXPIRED although its payload is gone, and so does a cancelled one as CANCELLED."""
    name = stopped_agent(stored)
    expired = stored.send(name, ttl_seconds=2)
    cancelled = stored.send(name)
    for key in list(stored.keys()):
        stored.change(key, None)
    MessageBus(stored.app).cancel(cancelled)
    pass_time(2.1)
    with stored.broker.running(name, stored.app, waooaw_reference_store=stored.url):
        assert settled(stored.app, expired) is MessageStatus.EXPIRED
        assert settled(stored.app, cancelled) is MessageStatus.CANCELLED


@pytest.mark.parametrize("content", [None, b"something else"], ids=["missing", "altered"])
def test_a_payload_that_is_gone_or_altered_makes_a_dead_letter(
    stored: Stored, content: bytes | None, dead_letters_alone_once: None
) -> None:
    """The dead letter says why; it can be retried when the payload is back, and no sooner where it is missing."""
    app, name = stored.app, stopped_agent(stored)
    before = set(stored.keys())
    id_ = stored.send(name)
    [key] = set(stored.keys()) - before
    original = stored.change(key, content)
    with stored.broker.running(name, app, waooaw_reference_store=stored.url):
        assert settled(app, id_) is MessageStatus.FAILED
        error = "PayloadMissing" if content is None else "PayloadAltered"
        until(lambda: app.dead_letters.list(message_id=id_), "the dead letter")
        [letter] = app.dead_letters.list(message_id=id_)
        assert error in letter.reason
        if content is None and stored.url is not None:
            [outcome] = app.dead_letters.retry([letter])
            assert "put it back" in str(outcome.refused)
        stored.change(key, original)
        [outcome] = app.dead_letters.retry([letter])
        assert outcome.refused is None
        assert settled(app, str(outcome.new_id)) is MessageStatus.HANDLED
        assert seen(app, name) == [LARGE]


@pytest.mark.slow
def test_a_dead_letter_can_be_edited(stored: Stored, dead_letters_alone_once: None) -> None:
    """Its payload is loaded for the edit, and the new one is stored anew."""
    app, name = stored.app, stopped_agent(stored)
    id_ = stored.send(name, {**LARGE, "reject": "no"})
    with stored.broker.running(name, app, waooaw_reference_store=stored.url):
        until(lambda: app.dead_letters.list(message_id=id_), "the dead letter")
        [outcome] = app.dead_letters.retry(app.dead_letters.list(message_id=id_), edit=lambda payload: LARGE)
        assert settled(app, str(outcome.new_id)) is MessageStatus.HANDLED
        assert seen(app, name)[-1] == LARGE


def test_nothing_is_sent_while_the_store_does_not_answer(broker: Broker, tmp_path: Path) -> None:
    """The sender gets an error that names the store; there is no receipt, and the queue is empty."""
    (tmp_path / "file").write_text("in the way")
    url = f"file://{tmp_path / 'file' / 'payloads'}"
    with closing(broker.app(waooaw_reference_above=ABOVE, waooaw_reference_store=url)) as app:
        stored = Stored(broker, app, url, tmp_path)
        name = stopped_agent(stored)
        message = Message(from_agent="tests", to_agent=name, payload=LARGE)
        small = Message(from_agent="tests", to_agent=name)
        with pytest.raises(ReferenceStoreUnavailable, match="could not store a payload in file://"):
            MessageBus(app).send_many([small, message])
        for each in (small, message):
            with pytest.raises(UnknownMessage):
                MessageBus(app).receipt(each.message_id)
        assert queue_length(app, name) == 0


@pytest.mark.slow
def test_a_message_waits_while_the_store_does_not_answer(stored: Stored) -> None:
    """It is tried again later, and handled when the store answers."""
    if stored.url is None:
        pytest.skip("the ledger's database is away: the worker stops consuming")
    app, name = stored.app, stopped_agent(stored)
    id_ = stored.send(name)
    aside = stored.folder.with_name("aside")
    shutil.move(stored.folder, aside)
    stored.folder.write_text("in the way")
    with stored.broker.running(name, app, waooaw_reference_store=stored.url):
        until(lambda: MessageBus(app).receipt(id_).attempts >= 1, "an attempt")
        stored.folder.unlink()
        shutil.move(aside, stored.folder)
        assert settled(app, id_) is MessageStatus.HANDLED
        assert seen(app, name) == [LARGE]


@pytest.mark.slow
def test_a_pool_of_threads_loads_payloads(stored: Stored) -> None:
    """Also a worker whose pool is not of processes gives its handlers the payload."""
    name = stored.broker.name()
    with stored.broker.running(name, stored.app, "-P", "threads", waooaw_reference_store=stored.url):
        assert settled(stored.app, stored.send(name)) is MessageStatus.HANDLED
        assert seen(stored.app, name) == [LARGE]


@pytest.mark.slow
def test_a_batch_has_large_payloads(stored: Stored, tmp_path: Path) -> None:
    """A handler of batches gets them too."""
    name, calls = stored.broker.name(), tmp_path / "calls"
    env = {"PROBE_CALLS": str(calls)}
    settings = {"size": 2, "within": 5.0, "waooaw_reference_store": stored.url}
    with stored.broker.running(name, stored.app, module="batch_probe", env=env, **settings):
        ids = [stored.send(name) for _ in range(2)]
        assert [settled(stored.app, id_) for id_ in ids] == [MessageStatus.HANDLED] * 2
        assert calls.read_text().count(LARGE["text"]) == 2


def test_without_a_ledger_on_one_redis(valkey_broker: Broker, tmp_path: Path) -> None:
    """Where one script counts, records and sends, messages and the deliveries of an event carry references too."""
    url, topics = f"file://{tmp_path / 'payloads'}", f"large{uuid4().hex[:8]}"
    with closing(valkey_broker.app(waooaw_reference_above=ABOVE, waooaw_reference_store=url)) as app:
        stored = Stored(valkey_broker, app, url, tmp_path / "payloads")
        name, env = valkey_broker.name(), {"PROBE_TOPICS": topics}
        with valkey_broker.running(name, app, module="event_probe", env=env, waooaw_reference_store=url):
            published = EventBus(app).publish(f"{topics}.made", LARGE)
            for receipt in published.receipts.values():
                assert settled(app, receipt.message_id) is MessageStatus.HANDLED
            assert published.receipts
            assert len(stored.keys()) == 1
            found: list[dict[str, Any]] = RequestResponseHandler(app).request(name, "seen", timeout=20)
            assert [each["payload"] for each in found] == [LARGE] * len(published.receipts)
        assert purge_payloads(app).objects == 0
        key = stored.keys()[0]
        (stored.folder / "2020-01-01").mkdir()
        (stored.folder / key).rename(stored.folder / f"2020-01-01/{key.partition('/')[2]}")
        assert purge_payloads(app).objects == 1


# --- the ledger


def test_the_ledger_has_the_payload_once(ledgered: Stored) -> None:
    """The row of the message has its reference and the digest of the payload; the trail and an export read it."""
    id_ = ledgered.send(stopped_agent(ledgered))
    trail = MessageAuditTrail(ledgered.app.ledger)
    record = trail.receipt(id_)
    assert record.payload is None
    assert record.reference is not None
    assert record.reference.size > ABOVE
    assert trail.payload(id_) == LARGE
    path = ledgered.folder.with_name("export.zip")
    found = export_messages(ledgered.app.ledger, path, Selection(conversation=id_), by="tests")
    assert (found.payload_digests.verified, found.payload_digests.differing) == (1, 0)


def test_the_deliveries_of_an_event_share_one_payload(ledgered: Stored) -> None:
    """An erasure blanks all of them but the one on hold, whose payload stays until the hold is released."""
    app, topic = ledgered.app, f"large{uuid4().hex[:8]}"
    names = [ledgered.broker.name() for _ in range(3)]
    before = set(ledgered.keys())
    for name in names:
        app.subscriptions.declare([Subscription(agent=name, name="note", patterns=(f"{topic}.#",))])
        app.registry.declare(name, ["event:note"], f"{name}@nowhere", lifetime=600.0)
    published = EventBus(app).publish(f"{topic}.made", {**LARGE, "person": "ada@example.org"})
    assert len(published.receipts) == 3
    assert len(set(ledgered.keys()) - before) == 1
    trail, retention = MessageAuditTrail(app.ledger), Retention(app.database)
    ids = [receipt.message_id for receipt in published.receipts.values()]
    retention.hold(HoldKind.MESSAGE, ids[0], "lawsuit")
    erasure = erase(app, containing="ADA@example.org")
    assert (erasure.messages + erasure.copies, erasure.events, erasure.payloads) == (2, 1, 0)
    assert trail.payload(ids[0])["person"] == "ada@example.org"
    assert trail.payload(ids[1]) is None
    retention.release(HoldKind.MESSAGE, ids[0])
    erasure = erase(app, containing="ada@example.org")
    assert (erasure.messages, erasure.payloads) == (1, 1)
    assert set(ledgered.keys()) <= before


def test_a_purge_removes_the_payload(ledgered: Stored) -> None:
    """It goes with the last message that needs it, and not before a day has passed."""
    app, name = ledgered.app, stopped_agent(ledgered)
    before = set(ledgered.keys())
    id_ = ledgered.send(name)
    with ledgered.broker.running(name, app, waooaw_reference_store=ledgered.url):
        settled(app, id_)
    Retention(app.database).purge(datetime.now(UTC) + timedelta(days=100))
    purge_payloads(app)
    assert set(ledgered.keys()) - before
    ledgered.pass_days(95)
    assert purge_payloads(app).objects >= 1
    assert not set(ledgered.keys()) - before


def test_a_payload_whose_sender_was_killed_is_removed(ledgered: Stored) -> None:
    """A sender that dies between store and record leaves a payload that counts as an orphan after a day."""
    name, before = stopped_agent(ledgered), set(ledgered.keys())
    program = f"""
import os, signal
from waooaw_celery import Message, MessageBus, create_app
app = create_app("killed", waooaw_sender="tests", broker_url={ledgered.broker.url!r},
    result_backend={ledgered.broker.redis_url!r}, waooaw_database_url={ledgered.broker.database_url!r},
    waooaw_reference_above={ABOVE}, waooaw_reference_store={ledgered.url!r})
real = app.components.large_payloads.store
class Killing:
    def put(self, *arguments):
        real.put(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
app.components.large_payloads.store = Killing()
MessageBus(app).send(Message(from_agent="tests", to_agent={name!r}, payload={LARGE!r}))
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert len(set(ledgered.keys()) - before) == 1
    assert queue_length(ledgered.app, name) == 0
    assert purge_payloads(ledgered.app).orphans == 0
    ledgered.pass_days(2)
    assert purge_payloads(ledgered.app).orphans == 1
    assert not set(ledgered.keys()) - before


def test_the_outbox_stores_payloads_in_the_transaction(ledgered: Stored) -> None:
    """A rollback leaves no row of the payload, and after a commit the message is handled."""
    app, name = ledgered.app, ledgered.broker.name()
    engine = create_engine(app.database.url)
    with ledgered.broker.running(name, app, waooaw_reference_store=ledgered.url):
        bus = MessageBus(app)
        count = text("SELECT count(*) FROM waooaw_objects")
        with Session(engine) as session:
            before = session.scalar(count)
            bus.send(Message(from_agent="tests", to_agent=name, payload=LARGE), session=session)
            session.rollback()
            assert session.scalar(count) == before
            sent = bus.send(Message(from_agent="tests", to_agent=name, payload=LARGE), session=session)
            session.commit()
        assert settled(app, sent.message_id) is MessageStatus.HANDLED
        assert seen(app, name) == [LARGE]
    engine.dispose()


def test_a_lost_message_is_recovered_with_its_reference(ledgered: Stored) -> None:
    """The recovery publishes the reference again, and the handler gets the payload."""
    app, name = ledgered.app, stopped_agent(ledgered)
    id_ = ledgered.send(name)
    with app.connection_for_write() as connection, connection.channel() as channel:
        agent_queue(name)(channel).delete()
    recover(app, name)
    with ledgered.broker.running(name, app, waooaw_reference_store=ledgered.url):
        assert settled(app, id_) is MessageStatus.HANDLED
        assert seen(app, name) == [LARGE]


def test_the_ledger_may_be_an_sqlite(redis_url: str, tmp_path: Path) -> None:
    """A payload in an SQLite ledger reaches its handler, and is removed with an erasure."""
    broker = Broker(redis_url, redis_url, tmp_path, f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    with closing(broker.app(waooaw_reference_above=ABOVE)) as app:
        schema.upgrade(app.database)
        stored, name = Stored(broker, app, None, tmp_path), broker.name()
        with broker.running(name, app):
            assert settled(app, stored.send(name)) is MessageStatus.HANDLED
            assert seen(app, name) == [LARGE]
        assert len(stored.keys()) == 1
        assert erase(app, agent=name).payloads == 1
        assert stored.keys() == []
