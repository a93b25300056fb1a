"""Which questions to the ledger read payloads: a payload may have megabytes, so lists do not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event

from waooaw_celery import Message, MessageStatus, MessageType
from waooaw_celery.errors import PayloadNotLoaded
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.read.lost import LostMessageRules, claim_transaction, find_lost
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import RetentionPolicy

#: A text in the payload that the tests look for.
NEEDLE = "needle"


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    ledger = Ledger(database, RetentionPolicy.DAYS_90)
    yield ledger
    ledger.close()


@pytest.fixture
def message(ledger: Ledger) -> Message:
    message = Message(
        from_agent="boss",
        to_agent=f"a{uuid4().hex[:12]}",
        payload={"text": NEEDLE},
        retention=RetentionPolicy.DAYS_90,
    )
    ledger.begin_recording([(message, "command")])()
    return message


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Collect the statements of a database during the block."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield found
    event.remove(database.engine, "before_cursor_execute", note)


def returns_payload(statement: str) -> bool:
    """Whether the rows of a SELECT have a payload."""
    return bool(re.search(r"\bpayload\b", statement.partition("FROM")[0]))


LISTS: dict[str, Callable[[MessageAuditTrail, Message], Any]] = {
    "by agent": lambda trail, message: trail.query(to_agent=message.to_agent, payloads=False).records,
    "by open status": lambda trail, message: (
        trail.query(to_agent=message.to_agent, status=MessageStatus.PENDING, payloads=False).records
    ),
    "by type": lambda trail, message: (
        trail.query(to_agent=message.to_agent, message_type=MessageType.COMMAND, payloads=False).records
    ),
    "by text": lambda trail, message: trail.query(to_agent=message.to_agent, text=NEEDLE, payloads=False).records,
    "by text and status": lambda trail, message: (
        trail.query(to_agent=message.to_agent, text=NEEDLE, status=MessageStatus.PENDING, payloads=False).records
    ),
    "conversation": lambda trail, message: trail.conversation(message.message_id, payloads=False),
    "history": lambda trail, message: trail.history(message.to_agent, payloads=False),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_without_payloads_does_not_read_them(ledger: Ledger, message: Message, name: str) -> None:
    """It finds the message, no statement returns a payload, and the record says that it has none."""
    with statements(ledger.database) as found:
        [record] = LISTS[name](MessageAuditTrail(ledger), message)
    assert found
    assert not list(filter(returns_payload, found))
    assert record.receipt.message_id == message.message_id
    with pytest.raises(PayloadNotLoaded, match=rf"record of {message.message_id} was read without its payload"):
        _ = record.payload


def test_a_list_reads_payloads_unless_it_is_told_not_to(ledger: Ledger, message: Message) -> None:
    """Code that reads the payloads of a query's records stays right."""
    trail = MessageAuditTrail(ledger)
    with statements(ledger.database) as found:
        records = [
            *trail.query(to_agent=message.to_agent, text=NEEDLE).records,
            *trail.query(status=MessageStatus.PENDING, to_agent=message.to_agent).records,
            *trail.conversation(message.message_id),
            *trail.history(message.to_agent),
            trail.receipt(message.message_id),
        ]
    assert [record.payload for record in records] == [message.payload] * 5
    assert list(filter(returns_payload, found))


def test_receipts_are_read_without_payloads(ledger: Ledger, message: Message) -> None:
    """The receipt of a message, the newest receipts, and the change of a status need no payload."""
    with statements(ledger.database) as found:
        assert ledger.get(message.message_id).message_id == message.message_id
        assert message.message_id in [receipt.message_id for receipt in ledger.recent(since=message.sent_at)]
        MessageAuditTrail(ledger).update_status(message.message_id, MessageStatus.DELIVERED)
    assert not list(filter(returns_payload, found))


def test_the_recovery_reads_the_payloads_of_lost_messages_only(ledger: Ledger, message: Message) -> None:
    """A message that is left alone costs no payload; a lost one has its payload."""
    now = datetime.now(UTC)
    rules = LostMessageRules(min_silence=timedelta(0), max_handling=timedelta(hours=1), exact=True)
    ids = [message.message_id]
    with statements(ledger.database) as found, claim_transaction(ledger.database) as connection:
        [lost] = find_lost(connection, ids, rules, now + timedelta(minutes=1))
    assert lost.message.payload == message.payload
    assert len(list(filter(returns_payload, found))) == 1
    ledger.check_recording()
    MessageAuditTrail(ledger).update_status(message.message_id, MessageStatus.DELIVERED)
    with statements(ledger.database) as found, claim_transaction(ledger.database) as connection:
        assert find_lost(connection, ids, rules, now - timedelta(minutes=1)) == []
    assert not list(filter(returns_payload, found))
