"""An erasure reaches every copy that the system made, with both brokers and both databases of the ledger."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, chain
from redis import Redis
from sqlalchemy import MetaData, select
from support import Broker, lone_database, note, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, MessageType, RequestResponseHandler
from waooaw_celery.agents import Erasure, EventBus, HoldKind, Retention, erase
from waooaw_celery.broker.dead_letters.dead_letter import read_content
from waooaw_celery.errors import UnknownMessage, WaooawError
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.rows import LedgerRow
from waooaw_celery.ledger.retention.erasure import erase_rows
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.message import NO_RECIPIENT
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.messages.topics.attributes import EventAttributes
from waooaw_celery.results.removal import StoredResults
from waooaw_celery.testing.embedded import end, valkey


@dataclass
class System:
    """A broker, a ledger and an agent of their own."""

    broker: Broker
    app: AgentApp
    name: str

    def send(self, payload: Any) -> str:
        """Send the agent a command, wait for its end, and return its id."""
        message = Message(from_agent="tests", to_agent=self.name, payload=payload)
        MessageBus(self.app).send(message)
        settled(self.app, message.message_id)
        return message.message_id

    def call(self, value: Any) -> str:
        """Call a method whose result nobody fetches, and return the id of the message."""
        message_id = str(self.app.send_task(f"{self.name}.echo", kwargs={"value": value}).id)
        assert settled(self.app, message_id) is MessageStatus.HANDLED
        return message_id

    def dump(self) -> str:
        """Return everything that the system keeps, as text: ledger, dead letters, Redis, spool."""
        self.app.ledger.flush()
        return "\n".join([*self._rows(), *self._dead_letters(), *self._redis(), *self._spool()])

    def _rows(self) -> Iterator[str]:
        tables = MetaData()
        with self.app.database.begin("dump") as connection:
            tables.reflect(connection)
            for table in tables.sorted_tables:
                yield from (f"{table.name}: {tuple(row)}" for row in connection.execute(select(table)))

    def _dead_letters(self) -> Iterator[str]:
        for letter in self.app.dead_letters.list(agent=self.name, limit=1000):
            yield f"dead letter: {letter}"
            try:
                content = read_content(letter, self.app.packer.caps)
            except WaooawError:
                continue
            yield f"dead letter: {content}"

    def _redis(self) -> Iterator[str]:
        with Redis.from_url(self.broker.redis_url.replace("redis+socket", "unix")) as client:
            for key in client.keys("*"):
                # ``DUMP`` shows the deleted entries of a stream too, which Redis drops when it rewrites its file.
                kind = client.type(key)
                read: Any = {
                    b"string": client.get,
                    b"list": lambda key: client.lrange(key, 0, -1),
                    b"hash": client.hgetall,
                    b"set": client.smembers,
                    b"zset": lambda key: client.zrange(key, 0, -1),
                    b"stream": client.xrange,
                }[kind]
                yield f"redis {key!r}: {read(key)!r}"

    def _spool(self) -> Iterator[str]:
        if self.app.ledger.spool.path.exists():
            with closing(sqlite3.connect(self.app.ledger.spool.path)) as connection:
                yield from (f"spool: {row}" for row in connection.execute("SELECT * FROM spool"))


@pytest.fixture(
    scope="module",
    params=["valkey-sqlite", "valkey-postgresql", pytest.param("rabbitmq-postgresql", marks=pytest.mark.rabbitmq)],
)
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Each broker and each database in turn, with a worker of the probe agent."""
    broker_kind, database_kind = request.param.split("-")
    folder = tmp_path_factory.mktemp("erasure")
    with valkey() as redis_url:
        url = redis_url
        if broker_kind == "rabbitmq":
            url = request.getfixturevalue("amqp_url")
            request.getfixturevalue("dead_letters_alone")
        if database_kind == "sqlite":
            yield from _system(Broker(url, redis_url, folder, f"sqlite:///{folder / 'ledger.sqlite'}"))
        else:
            with lone_database(request.getfixturevalue("postgres_url")) as database_url:
                yield from _system(Broker(url, redis_url, folder, database_url))


def _system(broker: Broker) -> Iterator[System]:
    app, name = broker.app(), broker.name()
    schema.upgrade(app.database)
    worker = broker.start(name, app)
    try:
        yield System(broker, app, name)
    finally:
        end(worker)
        broker.clean()
        app.close()


@pytest.fixture
def text() -> str:
    """A text that stands for a person, and occurs nowhere else."""
    return f"ada-{uuid4().hex}"


def leave_copies(system: System, text: str) -> list[Any]:
    """Let the system copy a text to wherever it copies texts, and return the dead letters."""
    app, name = system.app, system.name
    system.send({"fail": text})  # a payload, an error text, a dead letter
    [letter] = app.dead_letters.list(agent=name, reason=text)
    [retried] = app.dead_letters.retry([letter])  # the same payload under another id, and its dead letter
    assert settled(app, str(retried.new_id)) is MessageStatus.FAILED
    system.send({"reject": text})
    system.call(text)
    requests = RequestResponseHandler(app)
    requests.request(name, "ask_for_reply", {"to_agent": name, "method": "fail", "params": {"text": text}})
    until(lambda: text in str(requests.request(name, "replies")), "the reply")
    steps = [app.signature(f"{name}.echo", kwargs={"value": value}, immutable=True) for value in (1, text)]
    last_id = str(chain(*steps).apply_async().id)
    until(lambda: _is_known(app, last_id), "the last step of the chain")  # the first one sends it
    assert settled(app, last_id) is MessageStatus.HANDLED
    EventBus(app).publish("person.moved", {"name": text}, from_agent="tests", subject=text)
    app.ledger.spool.append([LedgerRow("message", "refused-1", _refused_row(name, text))])
    [(row_id, _)] = app.ledger.spool.first(1, 1)
    app.ledger.spool.refuse(row_id, f"DataError: {text}")
    return [letter, *app.dead_letters.list(agent=name, reason=text)]


def _is_known(app: AgentApp, message_id: str) -> bool:
    try:
        app.receipts.get(message_id)
    except UnknownMessage:
        return False
    return True


def _refused_row(name: str, text: str) -> str:
    columns = {"message_id": "refused-1", "from_agent": "tests", "to_agent": name, "payload": json.dumps([text])}
    return json.dumps(columns | {"at": "2026-11-28T00:00:00+00:00", "options": None, "event": None})


def assert_places(erasure: Erasure, **least: int) -> None:
    """Check that an erasure counted at least so much in each place."""
    counts = {place: getattr(erasure, place) for place in least}
    assert {place: count for place, count in counts.items() if count < least[place]} == {}, erasure


@pytest.mark.slow
def test_an_erasure_by_text_reaches_every_copy(system: System, text: str) -> None:
    """The text is nowhere afterwards, each place is counted, and no retry, recovery or replay brings it back."""
    letters = leave_copies(system, text)
    assert text in system.dump()
    erasure = erase(system.app, containing=text.upper())
    assert text not in system.dump()
    assert_places(
        erasure, messages=6, events=1, error_texts=4, publish_options=1, dead_letters=2, results=2, spool_rows=1
    )
    assert any("logs" in place for place in erasure.remains)
    refused = system.app.dead_letters.retry(letters)
    assert all(each.refused and "erased" in each.refused for each in refused)
    gone = system.app.dead_letters.retry([letters[0].id])
    assert [each.refused for each in gone if each.refused and "erased" in each.refused] != []
    assert text not in system.dump()
    again = erase(system.app, containing=text)
    assert (again.messages, again.copies, again.answers, again.dead_letters, again.results) == (0, 0, 0, 0, 0)


@pytest.mark.slow
def test_an_erasure_of_an_agent_reaches_every_copy(system: System, text: str) -> None:
    """What the agent sent and received is nowhere afterwards, though the copies do not all name the agent."""
    letters = leave_copies(system, text)
    erasure = erase(system.app, agent=system.name)
    leftovers = [line for line in system.dump().split("\n") if text in line]
    # The event was published by another agent, for nobody.
    assert [line for line in leftovers if "person.moved" not in line] == []
    assert_places(erasure, messages=6, error_texts=4, publish_options=1, dead_letters=2, results=2, spool_rows=1)
    assert all(each.refused for each in system.app.dead_letters.retry(letters))


@pytest.mark.slow
def test_an_erased_message_that_fails_later_is_not_retried(system: System, text: str, tmp_path: Path) -> None:
    """Its dead letter is refused with the reason, and the next erasure removes that and the error text."""
    app, gate = system.app, tmp_path / "gate"
    message = Message(from_agent="tests", to_agent=system.name, payload={"gate": str(gate), "fail": text})
    bus = MessageBus(app)
    bus.send(message)
    until(lambda: bus.receipt(message.message_id).status is MessageStatus.DELIVERED, "the handler")
    erasure = erase(app, containing=text)
    assert erasure.messages == 1
    assert any("1 messages that have not ended" in place for place in erasure.remains)
    gate.touch()
    assert settled(app, message.message_id) is MessageStatus.FAILED
    [letter] = app.dead_letters.list(agent=system.name, reason=text)
    [outcome] = app.dead_letters.retry([letter.id])
    assert outcome.refused is not None
    assert "its message was erased" in outcome.refused
    again = erase(app, containing="some other text that nobody wrote")
    assert (again.messages, again.error_texts, again.dead_letters) == (0, 1, 1)
    assert text not in system.dump()


@pytest.mark.slow
def test_a_hold_keeps_a_message_and_its_copies(system: System, text: str) -> None:
    """The message, its error, its dead letter and its result stay until the hold is released, and are reported."""
    app = system.app
    failed = system.send({"fail": text})
    called = system.call(text)
    retention = Retention(app.database)
    # A message that the ledger refused is only in the spool; its fact names no agent.
    app.ledger.spool.append([LedgerRow("message", "refused-1", _refused_row(system.name, text))])
    app.ledger.spool.append(
        [LedgerRow("fact", "refused-1", json.dumps({"message_id": "refused-1", "error": text}))]
    )
    for row_id, _ in app.ledger.spool.first(10, 10):
        app.ledger.spool.refuse(row_id, "DataError")
    for message_id in (failed, called):
        retention.hold(HoldKind.MESSAGE, message_id, "case 7")
    retention.hold(HoldKind.AGENT, system.name, "case 8")
    assert erase(app, containing=text).spool_rows == 0
    retention.release(HoldKind.AGENT, system.name)
    retention.hold(HoldKind.MESSAGE, "refused-1", "case 9")
    erasure = erase(app, containing=text)
    assert (erasure.messages, erasure.error_texts, erasure.dead_letters, erasure.results) == (0, 0, 0, 0)
    assert erasure.spool_rows == 0
    assert any("3 messages on legal hold" in place for place in erasure.remains)
    assert len(app.dead_letters.list(agent=system.name, reason=text)) == 1
    for message_id in (failed, called, "refused-1"):
        retention.release(HoldKind.MESSAGE, message_id)
    erasure = erase(app, containing=text)
    assert (erasure.messages, erasure.dead_letters, erasure.results, erasure.spool_rows) == (3, 1, 1, 2)
    assert text not in system.dump()


@pytest.mark.slow
def test_no_byte_of_it_stays_in_the_files_of_sqlite(system: System, text: str) -> None:
    """Neither the ledger's file, nor its journal, nor the spool contains the text, also not in free pages."""
    folder = system.broker.folder
    if not str(system.broker.database_url).startswith("sqlite"):
        pytest.skip("PostgreSQL rewrites its files by itself")
    leave_copies(system, text)
    system.send({"padding": [f"{text}-{number}" for number in range(5000)]})  # many pages
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:  # an older version's purge
        connection.execute("PRAGMA secure_delete=OFF")
        rule = ("2026-11-28 00:00:00", text * 1000)
        connection.execute("INSERT INTO waooaw_purges (at, rule, messages, events) VALUES (?, ?, 0, 0)", rule)
        connection.commit()
        connection.execute("DELETE FROM waooaw_purges WHERE rule = ?", rule[1:])
        connection.commit()

    def files_with_text() -> list[str]:
        paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"]
        return [path.name for path in paths if text.encode() in path.read_bytes()]

    assert {name.partition(".sqlite")[0] for name in files_with_text()} == {
        "ledger",
        system.app.ledger.spool.path.stem,
    }
    erasure = erase(system.app, containing=text)
    assert files_with_text() == []
    assert not any("old contents" in place for place in erasure.remains)


def test_copies_and_answers_are_found_by_their_threads(system: System, text: str) -> None:
    """Deliveries of an event, other recipients, replies and the errors that quote them are blanked too.

    A message with the same payload in another conversation stays.
    """
    ledger, trail = system.app.ledger, MessageAuditTrail(system.app.ledger)
    agent = f"person-{uuid4().hex[:8]}"
    ids: dict[str, str] = {}

    def record(label: str, to_agent: str, payload: Any, **fields: Any) -> Message:
        fields = {"from_agent": "boss", "message_type": MessageType.COMMAND} | fields
        message = Message(to_agent=to_agent or "boss", payload=payload, **fields)
        if not to_agent:
            message = message.filled_in(to_agent=NO_RECIPIENT)
        ledger.begin_recording([(message, "command")])()
        note(ledger, message, MessageEvent.DELIVERED, MessageEvent.FAILED, error=f"RemoteError: {text}")
        ids[label] = message.message_id
        return message

    thread, event_thread = (f"thread-{uuid4().hex[:8]}" for _ in range(2))
    cause = record("cause", "worker-1", {"n": 1}, conversation_id=thread)
    asked = record("asked", agent, {"who": text}, conversation_id=thread, causation_id=cause.message_id)
    record(
        *("answer", "worker-1", {"result": f"{text} lives here"}),
        message_type=MessageType.RESPONSE,
        conversation_id=thread,
        causation_id=asked.message_id,
    )
    record("forwarded", "worker-2", {"who": text}, conversation_id=thread, causation_id=cause.message_id)
    record("unrelated", "worker-2", {"who": text})
    record("trivial", agent, {}, conversation_id=thread)
    record("also trivial", "worker-2", {}, conversation_id=thread)
    attributes = EventAttributes(
        id="e-1", topic="person.moved", source="boss", time=asked.sent_at, subject=f"about {text}"
    )
    event = {"message_type": MessageType.EVENT, "event": attributes, "conversation_id": event_thread}
    record("event", NO_RECIPIENT, {"moved": text}, **event)
    record("delivery", agent, {"moved": text}, **event)
    record("other delivery", "worker-2", {"moved": text}, **event)
    erased = erase_rows(system.app.database, agent=agent)
    blank = {label for label, message_id in ids.items() if trail.receipt(message_id).erased_at is not None}
    assert blank == {"asked", "answer", "forwarded", "trivial", "event", "delivery", "other delivery"}
    assert (erased.messages, erased.copies, erased.answers, erased.events) == (3, 2, 1, 1)
    assert {label for label, id_ in ids.items() if trail.receipt(id_).receipt.error is not None} == {
        "unrelated",
        "also trivial",
    }
    stored = trail.receipt(ids["event"]).event
    assert stored is not None
    assert (stored.subject, stored.topic) == (None, "person.moved")


@pytest.mark.parametrize("backend", ["file", "db+sqlite"])
def test_results_are_removed_from_other_backends(tmp_path: Path, backend: str) -> None:
    """Celery's result backends in files and in a database lose the results of the given messages."""
    url = f"file://{tmp_path}" if backend == "file" else f"db+sqlite:///{tmp_path / 'results.sqlite'}"
    app = Celery("results", backend=url, broker="memory://")
    for id_ in ("one", "two"):
        app.backend.store_result(id_, "Ada", "SUCCESS")
    results = StoredResults(app.backend)
    assert results.remove(["one", "three"]) == 1
    assert app.backend.get_state("one") == "PENDING"
    assert app.backend.get_state("two") == "SUCCESS"
    assert not results.is_searchable
