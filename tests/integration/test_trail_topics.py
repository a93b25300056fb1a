"""The audit trail is asked by a pattern of topics, on PostgreSQL and on SQLite."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from support import note

from waooaw_celery import Message, MessageStatus, MessageType
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.read import scan as scanning
from waooaw_celery.ledger.read import topics as reading
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.message import NO_RECIPIENT
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.messages.topics.attributes import EventAttributes
from waooaw_celery.messages.topics.patterns import matches

#: Topics below a unique word: the tests share the PostgreSQL database.
TOPICS = ("", ".paid", ".paid.late", ".sent", ".x.paid", "-not.paid", "_.paid", ".Paid")
PATTERNS = ("{}.*", "{}.#", "{}.#.paid", "{}.*.paid", "{}.paid.#", "{}.#.#", "{}.*.*", "*.{}", "{}.#.late.#")


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    ledger = Ledger(database, RetentionPolicy.DAYS_90)
    yield ledger
    ledger.close()


@pytest.fixture
def trail(ledger: Ledger) -> MessageAuditTrail:
    return MessageAuditTrail(ledger)


@pytest.fixture
def word(ledger: Ledger) -> str:
    """A word under which three events of each topic are recorded."""
    word = f"w{uuid4().hex[:10]}"
    for number in range(3):
        for topic in TOPICS:
            publish(ledger, f"{word}{topic}", {"number": number})
    return word


def publish(ledger: Ledger, topic: str, payload: Any = None, **fields: Any) -> Message:
    """Record an event as the publisher does."""
    id_, now = str(uuid4()), datetime.now(UTC)
    attributes = EventAttributes(id=id_, topic=topic, source="boss", time=now)
    message = Message(
        **({"from_agent": "boss", "to_agent": "boss", "payload": payload, "message_id": id_} | fields),
        message_type=MessageType.EVENT,
        event=attributes,
    ).filled_in(to_agent=NO_RECIPIENT, sent_at=fields.get("sent_at", now))
    ledger.begin_recording([], record=message)()
    return message


def found(trail: MessageAuditTrail, pattern: str, **filters: Any) -> list[tuple[str, Any]]:
    """Return the topic and the payload of all messages, over several pages."""
    page = trail.query(topic=pattern, limit=4, **filters)
    records = page.records
    while page.after is not None:
        page = trail.query(topic=pattern, limit=4, after=page.after, **filters)
        records += page.records
    assert [each.receipt.sent_at for each in records] == sorted((r.receipt.sent_at for r in records), reverse=True)
    return [(each.receipt.handler, each.payload) for each in records]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("few", [True, False], ids=["few topics", "many topics"])
def test_the_patterns_of_subscriptions_select_messages(
    trail: MessageAuditTrail, word: str, pattern: str, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newest first, each once, page by page; whether the topics are read one by one or not."""
    monkeypatch.setattr(reading, "MAX_KNOWN_TOPICS", 100_000 if few else 0)
    pattern = pattern.format(word)
    expected = {f"{word}{topic}" for topic in TOPICS if matches(pattern, f"{word}{topic}")}
    since = datetime.now(UTC) - timedelta(minutes=5)
    records = found(trail, pattern, since=since)
    assert sorted(records, key=str) == sorted(
        ((topic, {"number": number}) for topic in expected for number in range(3)), key=str
    )


def test_a_pattern_combines_with_other_filters(ledger: Ledger, trail: MessageAuditTrail, word: str) -> None:
    """Among them those whose own index leads: sender, correlation and status."""
    one = publish(ledger, f"{word}.sent", "one", from_agent=word, correlation_id=f"c-{word}")
    note(ledger, one, MessageEvent.SENT)
    topics = f"{word}.#"
    for filters in (
        {"from_agent": word},
        {"correlation_id": f"c-{word}"},
        {"text": "one", "since": datetime.now(UTC) - timedelta(minutes=5)},
    ):
        assert found(trail, topics, **filters) == [(f"{word}.sent", "one")]
    published = found(
        trail, topics, status=MessageStatus.PUBLISHED, since=datetime.now(UTC) - timedelta(minutes=5)
    )
    assert len(published) == 3 * 6 + 1
    assert found(trail, f"{word}.*.*.*", from_agent=word) == []


def test_few_topics_are_read_along_their_index(ledger: Ledger, trail: MessageAuditTrail, word: str) -> None:
    """An old event is found behind more messages than a page scans."""
    old = publish(ledger, f"{word}.old.one", "old", sent_at=datetime.now(UTC) - timedelta(days=3))
    for _ in range(10):
        publish(ledger, f"{word}.other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "MAX_SCANNED_ROWS", 5)
        [record] = trail.query(topic=f"{word}.old.*").records
    assert record.receipt.message_id == old.message_id


def test_a_malformed_pattern_is_refused(trail: MessageAuditTrail) -> None:
    """The error says what is wrong with it."""
    with pytest.raises(InvalidMessage, match="has an empty word"):
        trail.query(topic="a..*")
    with pytest.raises(InvalidMessage, match=r"words consist of"):
        trail.query(topic="a.b*")


def test_the_regular_expression_of_a_pattern_matches_the_same_topics() -> None:
    """Compared with the matching of subscriptions, for random patterns and topics."""
    chance = random.Random(7)  # noqa: S311 - no secret
    for _ in range(20_000):
        pattern = ".".join(chance.choices(["a", "b-", "*", "#"], k=chance.randint(1, 5)))
        topic = ".".join(chance.choices(["a", "b-", "c_"], k=chance.randint(1, 5)))
        assert bool(re.search(reading.regular_expression(pattern), topic)) == matches(pattern, topic), (
            pattern,
            topic,
        )
