"""The queries of the audit trail, on PostgreSQL and on SQLite."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event, text
from support import lone_database, note

from waooaw_celery import Message, MessageStatus, MessageType, Priority
from waooaw_celery.errors import AuditUnavailable, InvalidMessage, UnknownMessage
from waooaw_celery.ledger.database import engine
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.read.records import Durations
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import KEPT_FOREVER, RetentionPolicy
from waooaw_celery.messages.receipt import MessageEvent


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    ledger = Ledger(database, RetentionPolicy.DAYS_90)
    yield ledger
    ledger.close()


@pytest.fixture
def trail(ledger: Ledger) -> MessageAuditTrail:
    return MessageAuditTrail(ledger)


def unique_agent() -> str:
    """Return an agent name that no other test uses: the tests share the PostgreSQL database."""
    return f"a{uuid4().hex[:12]}"


def record_sent(ledger: Ledger, to: str, **fields: Any) -> Message:
    """Record a message as the publisher does, and return it."""
    message = Message(**({"from_agent": "boss", "to_agent": to} | fields))
    ledger.begin_recording([(message, message.message_type.value)])()
    return message


def record_handled(ledger: Ledger, message: Message) -> None:
    """Record the events of a message that is handled."""
    note(ledger, message, MessageEvent.SENT)
    note(ledger, message, MessageEvent.DELIVERED)
    note(ledger, message, MessageEvent.HANDLED)


def test_a_record_is_complete(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """Payload, digest, expiry, retention and every event are read as they were written."""
    to = unique_agent()
    payload = {"text": "ü \x00 \ud800", "n": [1, 2.5, None]}
    message = record_sent(ledger, to, payload=payload, priority=Priority.HIGH, retention=RetentionPolicy.DAYS_30)
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
    """The digest is the SHA-256 of the JSON text with sorted keys and no spaces."""
    message = record_sent(ledger, unique_agent(), payload={"b": 1, "a": [True]})
    expected = hashlib.sha256(b'{"a":[true],"b":1}').hexdigest()
    assert trail.receipt(message.message_id).payload_digest == expected


def test_writing_twice_changes_nothing(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """The same message, the same event and a second final event are not recorded."""
    message = record_sent(ledger, unique_agent())
    assert ledger.begin_recording([(message, "command")])() == set()
    record_handled(ledger, message)
    delivered = trail.receipt(message.message_id).events[1]
    note(ledger, message, MessageEvent.DELIVERED, at=delivered.at)
    note(ledger, message, MessageEvent.FAILED, error="late")
    record = trail.receipt(message.message_id)
    assert [event.event for event in record.events] == ["sent", "delivered", "handled"]


def test_filters_combine(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """A result matches all filters."""
    to = unique_agent()
    now = datetime.now(UTC)
    old = record_sent(ledger, to, sent_at=now - timedelta(hours=2), payload={"what": "100% _old_"})
    new = record_sent(ledger, to, message_type=MessageType.ACK, priority=Priority.LOW, correlation_id="t-1")
    record_handled(ledger, new)

    def ids(**filters: Any) -> set[str]:
        # A page scans 5,000 messages, and other tests may have left more that are PENDING: so all pages are read.
        page = trail.query(to_agent=to, **filters)
        records = [*page.records]
        while page.after is not None:
            page = trail.query(to_agent=to, after=page.after, **filters)
            records += page.records
        return {record.receipt.message_id for record in records}

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
def test_status_filters_alone_and_with_others(
    ledger: Ledger, trail: MessageAuditTrail, events: list[MessageEvent], status: MessageStatus
) -> None:
    """Only the filter by a message's status finds it, whichever other filters the query has."""
    # A period that no other test uses: the tests share the PostgreSQL database.
    since = datetime.now(UTC) - timedelta(days=4000, seconds=uuid4().int % 10**7)
    message = record_sent(
        ledger, unique_agent(), sent_at=since, correlation_id=unique_agent(), ttl_seconds=None, payload="needle"
    )
    note(ledger, message, *events)
    period = {"since": since, "until": since + timedelta(milliseconds=1)}
    for filters in (
        {},
        {"to_agent": message.to_agent},
        {"correlation_id": message.correlation_id},
        {"message_type": MessageType.COMMAND},
        {"text": "needle", "from_agent": "boss"},
    ):
        for wanted in MessageStatus:
            found = [r.receipt.message_id for r in trail.query(status=wanted, **period, **filters).records]
            assert found == [message.message_id] * (wanted is status)


def test_pages_return_every_message_once(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """Following ``after`` returns every message once, newest first, also if several have the same time."""
    to = unique_agent()
    at = datetime.now(UTC)
    sent = [record_sent(ledger, to, sent_at=at - timedelta(seconds=number // 3)) for number in range(10)]
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


def test_a_conversation_is_in_causal_order(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """Each message follows its cause, whatever its time. Any id of the conversation finds it."""
    to = unique_agent()
    now = datetime.now(UTC)
    root = record_sent(ledger, to, correlation_id=f"order-{to}")
    ids = {"conversation_id": root.message_id}
    # The clock of the second computer is a minute behind.
    reply = record_sent(ledger, to, causation_id=root.message_id, sent_at=now - timedelta(minutes=1), **ids)
    last = record_sent(ledger, to, causation_id=reply.message_id, **ids)
    record_sent(ledger, to)
    expected = [root.message_id, reply.message_id, last.message_id]
    for id_ in (root.message_id, last.message_id, f"order-{to}"):
        assert [record.receipt.message_id for record in trail.conversation(id_)] == expected
    with pytest.raises(UnknownMessage, match="no message, thread or conversation 'x'"):
        trail.conversation("x")


def test_history_returns_what_an_agent_sent_and_received(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """It returns both directions, and nothing older than the number of days."""
    name = unique_agent()
    received = record_sent(ledger, name)
    sent = record_sent(ledger, unique_agent(), from_agent=name)
    record_sent(ledger, name, sent_at=datetime.now(UTC) - timedelta(days=9))
    assert {r.receipt.message_id for r in trail.history(name)} == {received.message_id, sent.message_id}
    assert len(trail.history(name, days=10)) == 3


def test_statistics_count_and_measure(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """Totals, statuses, types, the most frequent agents, durations and the error rate of a period."""
    # A period that no other test uses: the tests share the PostgreSQL database.
    since = datetime.now(UTC) - timedelta(days=4000, seconds=uuid4().int % 10**7)
    one, two = unique_agent(), unique_agent()
    for number in range(4):
        message = record_sent(ledger, one, sent_at=since + timedelta(microseconds=number), ttl_seconds=None)
        note(ledger, message, MessageEvent.DELIVERED, seconds=number)
        note(ledger, message, MessageEvent.FAILED if number == 3 else MessageEvent.HANDLED, seconds=number / 10)
    record_sent(ledger, two, message_type=MessageType.ACK, sent_at=since + timedelta(microseconds=5))
    statistics = trail.statistics(since, since + timedelta(seconds=1))
    assert statistics.total == 5
    assert statistics.by_status == {"failed": 1, "handled": 3, "pending": 1}
    assert statistics.by_type == {"ack": 1, "command": 4}
    assert statistics.top_receivers == [(one, 4), (two, 1)]
    assert statistics.top_senders == [("boss", 5)]
    assert statistics.error_rate == 0.25
    assert statistics.delivery == Durations(p50=1, p95=3, p99=3)
    assert statistics.handling == Durations(p50=0.1, p95=0.2, p99=0.2)
    empty = trail.statistics(since - timedelta(microseconds=2), since - timedelta(microseconds=1))
    assert (empty.total, empty.error_rate, empty.delivery.p50) == (0, None, None)


def answered(ledger: Ledger, request: Message, event: MessageEvent, result: object) -> None:
    """Record the end of a request with its answer, as workers do."""
    reply = Message(
        from_agent=request.to_agent,
        to_agent=request.from_agent,
        message_type=MessageType.RESPONSE,
        payload={"result": result},
        ttl_seconds=None,
        message_id=f"answer-to-{request.message_id}",
        conversation_id=request.message_id,
        sent_at=request.sent_at + timedelta(microseconds=1 if event is MessageEvent.FAILED else 2),
    )
    note(ledger, request, event, answer=reply)


def test_an_answer_counts_by_type_and_status_and_not_in_the_error_rate(
    ledger: Ledger, trail: MessageAuditTrail
) -> None:
    """One of one requests failed, although its answer is a second message that has ended."""
    since = datetime.now(UTC) - timedelta(days=4000, seconds=uuid4().int % 10**7)
    request = record_sent(ledger, unique_agent(), message_type=MessageType.QUERY, sent_at=since, ttl_seconds=None)
    answered(ledger, request, MessageEvent.FAILED, None)
    statistics = trail.statistics(since, since + timedelta(seconds=1))
    assert statistics.by_status == {"answered": 1, "failed": 1}
    assert statistics.by_type == {"query": 1, "response": 1}
    assert statistics.error_rate == 1


def test_the_first_answer_of_a_request_counts(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """A request that two workers handled, because one of them lost its lease, has one end and one answer."""
    request = record_sent(ledger, unique_agent(), message_type=MessageType.QUERY)
    answered(ledger, request, MessageEvent.FAILED, "first")
    answered(ledger, request, MessageEvent.HANDLED, "second")
    ended, answer = trail.conversation(request.message_id)
    assert ended.receipt.status is MessageStatus.FAILED
    assert (answer.receipt.status, answer.payload) == (MessageStatus.ANSWERED, {"result": "first"})
    assert [event.event for event in answer.events] == ["answered"]


def test_statistics_agree_while_messages_are_recorded(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """A message that is recorded between two of the queries is in all counts or in none."""
    since = datetime.now(UTC) - timedelta(days=4000, seconds=uuid4().int % 10**7)
    record_sent(ledger, unique_agent(), sent_at=since, ttl_seconds=None)
    meanwhile: list[str] = []

    def record_another(*arguments: Any) -> None:
        if "SELECT" in arguments[2] and "message_type" in arguments[2] and not meanwhile:
            meanwhile.append(arguments[2])
            with ThreadPoolExecutor(1) as threads:
                threads.submit(record_sent, ledger, unique_agent(), sent_at=since, ttl_seconds=None).result(30)

    event.listen(ledger.database.engine, "after_cursor_execute", record_another)
    try:
        statistics = trail.statistics(since, since + timedelta(seconds=1))
    finally:
        event.remove(ledger.database.engine, "after_cursor_execute", record_another)
    assert meanwhile
    assert statistics.total == sum(statistics.by_status.values()) == 1
    assert trail.statistics(since, since + timedelta(seconds=1)).total == 2


def test_forever_is_the_last_storable_day(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """The retention FOREVER ends on the last day that the database can store."""
    message = record_sent(ledger, unique_agent(), retention=RetentionPolicy.FOREVER)
    assert trail.receipt(message.message_id).retain_until == KEPT_FOREVER


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"limit": 0}, "limit must be 1 to 1000"),
        ({"since": datetime(2026, 1, 1)}, "aware"),
    ],
)
def test_invalid_queries_are_refused(trail: MessageAuditTrail, arguments: dict[str, Any], error: str) -> None:
    """A limit out of range and a time without a time zone raise InvalidMessage."""
    with pytest.raises(InvalidMessage, match=error):
        trail.query(**arguments)


@pytest.mark.slow
def test_statistics_have_a_longer_deadline_than_other_queries(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another transaction locks a table, other queries fail; statistics wait and succeed."""
    with lone_database(postgres_url) as url, closing(Database(database_url(url))) as database:
        schema.upgrade(database)
        trail = MessageAuditTrail(Ledger(database, RetentionPolicy.DAYS_90))
        monkeypatch.setattr(engine, "DEADLINE_SECONDS", 0)  # the watchdog adds a second
        with ThreadPoolExecutor(1) as threads:
            with database.begin("lock a table", 30) as connection:
                connection.execute(text("LOCK TABLE waooaw_messages"))
                statistics = threads.submit(trail.statistics)
                for _ in range(2):  # together they take longer than the deadline of one query
                    with pytest.raises(AuditUnavailable):
                        trail.query()
            assert statistics.result(30).total == 0
