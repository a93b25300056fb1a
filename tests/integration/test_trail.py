"""The ledger's questions, on PostgreSQL and on SQLite."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from support import lone_database, note

from waooaw_celery import Message, MessageStatus, MessageType, Priority
from waooaw_celery.errors import AuditUnavailable, ConfigurationError, InvalidMessage, UnknownMessage
from waooaw_celery.ledger.database import engine
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.database.models import Base
from waooaw_celery.ledger.database.version import NEWEST, VERSION_TABLE, check_version
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.read.records import Durations
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.message import KEPT_FOREVER, RetentionPolicy
from waooaw_celery.messages.receipt import MessageEvent


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A ledger's database with its schema."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    else:
        url = request.getfixturevalue("postgres_url")
    database = Database(database_url(url))
    schema.upgrade(database)
    yield database
    database.close()


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    ledger = Ledger(database, RetentionPolicy.DAYS_90)
    yield ledger
    ledger.close()


@pytest.fixture
def trail(ledger: Ledger) -> MessageAuditTrail:
    return MessageAuditTrail(ledger)


def agent() -> str:
    """Return a name that no other test uses: the PostgreSQL database is shared."""
    return f"a{uuid4().hex[:12]}"


def said(ledger: Ledger, to: str, **fields: Any) -> Message:
    """Write down a message as the door does."""
    message = Message(**({"from_agent": "boss", "to_agent": to} | fields))
    ledger.pending([(message, message.message_type.value)])()
    return message


def handled(ledger: Ledger, message: Message) -> None:
    note(ledger, message, MessageEvent.SENT)
    note(ledger, message, MessageEvent.DELIVERED)
    note(ledger, message, MessageEvent.HANDLED)


def test_the_migrations_make_what_the_models_say(database: Database) -> None:
    """After the upgrade, comparing the database with the models finds no difference but partitions."""
    with database.begin("compare") as connection:
        options = {"version_table": VERSION_TABLE, "include_name": _no_partition}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []


def test_the_newest_migration_is_the_version_that_is_asked_for() -> None:
    """The constant that is checked at start-up is the head of the migrations."""
    assert ScriptDirectory.from_config(schema.migrations()).get_current_head() == NEWEST


def _no_partition(name: str | None, kind: str, _: Any) -> bool:
    return kind != "table" or name in Base.metadata.tables


def test_a_record_holds_everything(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """Envelope, payload, digest, expiry, retention and every event come back as they were written."""
    to = agent()
    payload = {"text": "ü \x00 \ud800", "n": [1, 2.5, None]}
    message = said(ledger, to, payload=payload, priority=Priority.HIGH, retention=RetentionPolicy.DAYS_30)
    note(ledger, message, MessageEvent.SENT)
    note(ledger, message, MessageEvent.DELIVERED, worker="w@h", seconds=0.25)
    note(ledger, message, MessageEvent.RETRIED, error="ValueError: not yet", worker="w@h")
    note(ledger, message, MessageEvent.DELIVERED, attempt=2, worker="w@h")
    note(ledger, message, MessageEvent.FAILED, attempt=2, error="ValueError: \x00 never", seconds=1.5)
    record = trail.receipt(message.message_id)
    assert record.payload == payload
    assert record.receipt.status is MessageStatus.FAILED
    assert (record.receipt.attempts, record.receipt.error) == (2, "ValueError: \N{REPLACEMENT CHARACTER} never")
    assert record.retain_until == message.sent_at + timedelta(days=30)
    assert record.expires_at == message.expires_at
    assert [(event.event, event.attempt, event.worker, event.seconds) for event in record.events] == [
        ("sent", 0, None, None),
        ("delivered", 1, "w@h", 0.25),
        ("retried", 1, "w@h", None),
        ("delivered", 2, "w@h", None),
        ("failed", 2, None, 1.5),
    ]


def test_the_digest_is_of_canonical_json(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """Anybody can work out the digest: SHA-256 of the JSON with sorted keys and no spaces."""
    message = said(ledger, agent(), payload={"b": 1, "a": [True]})
    expected = hashlib.sha256(b'{"a":[true],"b":1}').hexdigest()
    assert trail.receipt(message.message_id).payload_digest == expected


def test_writing_twice_changes_nothing(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """The same message, the same fact and another end leave what was there."""
    message = said(ledger, agent())
    assert ledger.pending([(message, "command")])() == set()
    handled(ledger, message)
    begun = trail.receipt(message.message_id).events[1]
    note(ledger, message, MessageEvent.DELIVERED, at=begun.at)
    note(ledger, message, MessageEvent.FAILED, error="late")
    record = trail.receipt(message.message_id)
    assert [event.event for event in record.events] == ["sent", "delivered", "handled"]


def test_filters_combine(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """Each filter narrows the answer, and together they all hold."""
    to = agent()
    now = datetime.now(UTC)
    old = said(ledger, to, sent_at=now - timedelta(hours=2), payload={"what": "100% _old_"})
    new = said(ledger, to, message_type=MessageType.ACK, priority=Priority.LOW, correlation_id="t-1")
    handled(ledger, new)

    def ids(**filters: Any) -> set[str]:
        return {r.receipt.message_id for r in trail.query(to_agent=to, **filters).records}

    assert ids() == {old.message_id, new.message_id}
    assert ids(status=MessageStatus.HANDLED) == ids(message_type=MessageType.ACK) == {new.message_id}
    assert ids(priority=Priority.LOW) == ids(correlation_id="t-1") == {new.message_id}
    assert ids(status=MessageStatus.PENDING) == ids(until=now - timedelta(hours=1)) == {old.message_id}
    assert ids(text="100% _OLD_") == {old.message_id}
    assert ids(text="100x") == ids(from_agent="nobody") == set()
    assert ids(since=now - timedelta(hours=1), text="what") == set()


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([], MessageStatus.PENDING),
        ([MessageEvent.SENT], MessageStatus.SENT),
        ([MessageEvent.SENT, MessageEvent.DELIVERED, MessageEvent.RETRIED], MessageStatus.DELIVERED),
        ([MessageEvent.SENT, MessageEvent.DELIVERED, MessageEvent.HANDLED], MessageStatus.HANDLED),
        ([MessageEvent.DELIVERED, MessageEvent.FAILED], MessageStatus.FAILED),
        ([MessageEvent.SENT, MessageEvent.EXPIRED], MessageStatus.EXPIRED),
    ],
)
def test_a_status_is_found_by_itself_and_with_other_filters(
    ledger: Ledger, trail: MessageAuditTrail, events: list[MessageEvent], status: MessageStatus
) -> None:
    """A message has one status, whichever of the filters leads to it, and the others do not find it."""
    # In a stretch of the past that no other test uses: the PostgreSQL database is shared.
    since = datetime.now(UTC) - timedelta(days=4000, seconds=uuid4().int % 10**7)
    message = said(ledger, agent(), sent_at=since, correlation_id=agent(), ttl_seconds=None, payload="needle")
    note(ledger, message, *events)
    stretch = {"since": since, "until": since + timedelta(milliseconds=1)}
    for filters in (
        {},
        {"to_agent": message.to_agent},
        {"correlation_id": message.correlation_id},
        {"message_type": MessageType.COMMAND},
        {"text": "needle", "from_agent": "boss"},
    ):
        for asked in MessageStatus:
            found = [r.receipt.message_id for r in trail.query(status=asked, **stretch, **filters).records]
            assert found == [message.message_id] * (asked is status)


def test_pages_give_everything_once(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """Following ``after`` gives every message once, newest first, also when several have the same time."""
    to = agent()
    at = datetime.now(UTC)
    sent = [said(ledger, to, sent_at=at - timedelta(seconds=number // 3)) for number in range(10)]
    found: list[str] = []
    after = None
    while True:
        page = trail.query(to_agent=to, limit=3, after=after)
        found += [record.receipt.message_id for record in page.records]
        after = page.after
        if after is None:
            break
    expected = sorted(sent, key=lambda m: (m.sent_at, m.message_id), reverse=True)
    assert found == [message.message_id for message in expected]


def test_a_conversation_is_told_in_causal_order(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """Each message follows its cause, whatever the clocks say; any id of it finds it all."""
    to = agent()
    now = datetime.now(UTC)
    root = said(ledger, to, correlation_id=f"order-{to}")
    ids = {"conversation_id": root.message_id}
    # The clock of the second computer is a minute behind.
    reply = said(ledger, to, causation_id=root.message_id, sent_at=now - timedelta(minutes=1), **ids)
    last = said(ledger, to, causation_id=reply.message_id, **ids)
    said(ledger, to)
    expected = [root.message_id, reply.message_id, last.message_id]
    for id_ in (root.message_id, last.message_id, f"order-{to}"):
        assert [record.receipt.message_id for record in trail.conversation(id_)] == expected
    with pytest.raises(UnknownMessage, match="no message, thread or conversation 'x'"):
        trail.conversation("x")


def test_history_is_what_an_agent_sent_and_received(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """Both directions count, and what is older than the days asked for does not."""
    me = agent()
    got = said(ledger, me)
    gave = said(ledger, agent(), from_agent=me)
    said(ledger, me, sent_at=datetime.now(UTC) - timedelta(days=9))
    assert {r.receipt.message_id for r in trail.history(me)} == {got.message_id, gave.message_id}
    assert len(trail.history(me, days=10)) == 3


def test_statistics_count_and_measure(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """Totals, statuses, types, tops, durations and the error rate of a stretch of time."""
    # In a stretch of the past that no other test uses: the PostgreSQL database is shared.
    since = datetime.now(UTC) - timedelta(days=4000, seconds=uuid4().int % 10**7)
    one, two = agent(), agent()
    for number in range(4):
        message = said(ledger, one, sent_at=since + timedelta(microseconds=number), ttl_seconds=None)
        note(ledger, message, MessageEvent.DELIVERED, seconds=number)
        note(ledger, message, MessageEvent.FAILED if number == 3 else MessageEvent.HANDLED, seconds=number / 10)
    said(ledger, two, message_type=MessageType.ACK, sent_at=since + timedelta(microseconds=5))
    statistics = trail.statistics(since, since + timedelta(seconds=1))
    assert statistics.total == 5
    assert statistics.by_status == {"failed": 1, "handled": 3, "pending": 1}
    assert statistics.by_type == {"ack": 1, "command": 4}
    assert statistics.top_receivers == [(one, 4), (two, 1)]
    assert statistics.top_senders == [("boss", 5)]
    assert statistics.error_rate == 0.25
    assert statistics.delivery == Durations(p50=1, p95=3, p99=3)
    assert statistics.handling == Durations(p50=0.1, p95=0.2, p99=0.2)
    nothing = trail.statistics(since - timedelta(microseconds=2), since - timedelta(microseconds=1))
    assert (nothing.total, nothing.error_rate, nothing.delivery.p50) == (0, None, None)


def test_kept_for_ever_has_no_end(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """FOREVER is the last day that can be written."""
    message = said(ledger, agent(), retention=RetentionPolicy.FOREVER)
    assert trail.receipt(message.message_id).retain_until == KEPT_FOREVER


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"limit": 0}, "limit must be 1 to 1000"),
        ({"since": datetime(2026, 1, 1)}, "aware"),
    ],
)
def test_wrong_questions_are_refused(trail: MessageAuditTrail, arguments: dict[str, Any], sentence: str) -> None:
    """A limit out of range and a moment without a time zone raise InvalidMessage."""
    with pytest.raises(InvalidMessage, match=sentence):
        trail.query(**arguments)


def test_a_missing_schema_is_told(tmp_path: Path) -> None:
    """Without the tables, the check and every question say what to run."""
    database = Database(database_url(f"sqlite:///{tmp_path / 'empty.sqlite'}"))
    with pytest.raises(ConfigurationError, match=r"schema is missing.*waooaw db upgrade"):
        check_version(database)
    with pytest.raises(AuditUnavailable, match="waooaw db upgrade"):
        MessageAuditTrail(Ledger(database, RetentionPolicy.DAYS_90)).query()
    database.close()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("no url", "is not a URL"),
        ("mysql://h/d", "names mysql"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
    ],
)
def test_a_wrong_database_url_is_told(url: str, sentence: str) -> None:
    """Only PostgreSQL and SQLite files are taken."""
    with pytest.raises(ConfigurationError, match=sentence):
        database_url(url)


def test_statistics_may_take_longer_than_other_questions(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody holds a table up, other questions are given up; statistics wait, and are answered."""
    with lone_database(postgres_url) as url, closing(Database(database_url(url))) as database:
        schema.upgrade(database)
        trail = MessageAuditTrail(Ledger(database, RetentionPolicy.DAYS_90))
        monkeypatch.setattr(engine, "PATIENCE", 0)  # and a second for the server
        with ThreadPoolExecutor(1) as threads:
            with database.begin("keep others out", 30) as connection:
                connection.execute(text("LOCK TABLE waooaw_messages"))
                counted = threads.submit(trail.statistics)
                for _ in range(2):  # together they take longer than one question may
                    with pytest.raises(AuditUnavailable):
                        trail.query()
            assert counted.result(30).total == 0


def test_a_bare_postgresql_url_means_psycopg2() -> None:
    """SQLAlchemy 2.1 would take it for psycopg 3, which is not installed; a named driver is left."""
    assert database_url("postgresql://h/d").drivername == "postgresql+psycopg2"
    assert database_url("postgres://h/d").drivername == "postgresql+psycopg2"
    assert database_url("postgresql+psycopg://h/d").drivername == "postgresql+psycopg"


def test_a_dead_database_is_an_error_in_seconds() -> None:
    """A database that refuses connections raises AuditUnavailable and says what to check."""
    database = Database(database_url("postgresql://nobody@127.0.0.1:1/none"))
    with pytest.raises(AuditUnavailable, match=r"Connection refused.*waooaw_database_url"):
        Ledger(database, RetentionPolicy.DAYS_30).get("x")
    database.close()
