"""Odd and hostile values from callers are stored unchanged, or refused with a clear error."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support import Broker, note, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus
from waooaw_celery.errors import InvalidMessage, UnknownMessage
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.database.rows import message_row
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.retention.erasure import erase_rows
from waooaw_celery.ledger.retention.holds import HoldKind
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.settings import AuditMode

TEXTS = [
    "\x00",
    "a\x00b",
    "\ud800",
    "\udfff\ud800 ü",
    "'; DROP TABLE waooaw_messages; --",
    '"}], "x": [{"',
    "\\u0000 \\ud800 \\",
    "%s %(x)s %(messages)s %% %",
    ":name $1 {} {0} ${x}",
    "\r\n\t\x0b\x1b[31m\x7f\x85\u2028",
    "\u202egnirts\u202c \u200f",
    "🤷🏽‍♀️ ñ ﷽ 𒀭 \uffff",
    "",
]
VALUES = [
    2**63,
    -(2**64),
    10**30,
    0.1,
    -0.0,
    1e308,
    5e-324,
    True,
    None,
    [],
    {},
    [[[]]],
    "x" * 1_000_000,
    {"": {"": ""}},
]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a ledger."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def ledger(url: str, tmp_path: Path) -> Iterator[Ledger]:
    database = Database(database_url(url))
    schema.upgrade(database)
    ledger = Ledger(database, RetentionPolicy.DAYS_90, AuditMode.STRICT, str(tmp_path / "spool"))
    yield ledger
    ledger.close()


@pytest.fixture
def trail(ledger: Ledger) -> MessageAuditTrail:
    return MessageAuditTrail(ledger)


def agent() -> str:
    return f"a{uuid4().hex[:12]}"


@pytest.mark.parametrize("spooled", [False, True])
def test_payloads_are_stored_unchanged(ledger: Ledger, trail: MessageAuditTrail, spooled: bool) -> None:
    """As values and as keys, alone and nested: the ledger returns equal payloads, also after the spool."""
    to = agent()
    payloads = [*TEXTS, *VALUES, dict.fromkeys(TEXTS, 1), {text: [text] for text in TEXTS}, [VALUES, TEXTS]]
    messages = [Message(from_agent="boss", to_agent=to, payload=payload) for payload in payloads]
    entries = [(message, "command") for message in messages]
    if spooled:
        ledger.spool.append([message_row(message, "command", RetentionPolicy.DAYS_90) for message in messages])
        ledger.start()
        until(lambda: ledger.spool.counts() == (0, 0), "an empty spool")
    else:
        assert len(ledger.begin_recording(entries)()) == len(entries)
    for message in messages:
        found = trail.receipt(message.message_id).payload
        assert found == message.payload
        assert repr(found) == repr(message.payload)  # 1 is not True, and 0.0 is not -0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**5000, {1: 2}, {"a": {1}}, bytearray(b"x")])
def test_payloads_that_json_cannot_express_are_refused(value: Any) -> None:
    """NaN, infinity, huge integers, keys that are not text: the error names the payload."""
    with pytest.raises(InvalidMessage, match="payload"):
        Message(from_agent="a", to_agent="b", payload=value)


@pytest.mark.parametrize("text", [text for text in TEXTS if text != ""])
def test_ids_and_names_are_checked(text: str) -> None:
    """No id and no name accepts arbitrary text."""
    for field in ("from_agent", "to_agent", "message_id", "correlation_id", "conversation_id", "causation_id"):
        with pytest.raises(InvalidMessage, match=field):
            Message(**({"from_agent": "a", "to_agent": "b"} | {field: text}))


@pytest.mark.parametrize("year", [1, 1969, 9999])
def test_times_out_of_range_are_refused(year: int) -> None:
    """A message from before 1970 or far in the future is refused when it is made."""
    with pytest.raises(InvalidMessage, match="sent_at"):
        Message(from_agent="a", to_agent="b", sent_at=datetime(year, 1, 1, tzinfo=UTC))


def test_error_texts_are_stored(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """Characters that no database accepts are replaced, and all others stored unchanged."""
    for text in TEXTS:
        message = Message(from_agent="boss", to_agent=agent())
        ledger.begin_recording([(message, "command")])()
        note(ledger, message, MessageEvent.FAILED, error=text)
        record = trail.receipt(message.message_id)
        assert record.receipt.status is MessageStatus.FAILED
        expected = text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
        assert (record.receipt.error or "") == expected


@pytest.mark.parametrize("text", [text for text in TEXTS if text != ""])
def test_text_search_is_literal(trail: MessageAuditTrail, ledger: Ledger, text: str) -> None:
    """%, _ and backslashes stand for themselves. NUL, surrogates and emoji are found."""
    to = agent()
    with_it = Message(from_agent="boss", to_agent=to, payload={"said": f"before {text} after"})
    without = Message(from_agent="boss", to_agent=to, payload={"said": "before x after, 100 percent"})
    mixed = Message(from_agent="boss", to_agent=to, payload=[f"{text}", "\ud800"])
    ledger.begin_recording([(message, "command") for message in (with_it, without, mixed)])()
    found = {record.receipt.message_id for record in trail.query(to_agent=to, text=text).records}
    assert found == {with_it.message_id, mixed.message_id}


def test_text_search_ignores_case_in_all_languages(trail: MessageAuditTrail, ledger: Ledger) -> None:
    """On SQLite too, whose own comparison ignores the case of a to z only."""
    to = agent()
    message = Message(from_agent="boss", to_agent=to, payload={"said": "Äpfel ПРИВЕТ"})
    ledger.begin_recording([(message, "command")])()
    assert len(trail.query(to_agent=to, text="ÄPFEL привет").records) == 1


@pytest.mark.parametrize("text", [text for text in TEXTS if text != ""])
def test_queries_with_invalid_ids_are_refused(trail: MessageAuditTrail, text: str) -> None:
    """An invalid id or name raises InvalidMessage, never an error of a database driver."""
    for field in ("from_agent", "to_agent", "correlation_id"):
        with pytest.raises(InvalidMessage, match=field):
            trail.query(**{field: text})
    for ask in (trail.receipt, trail.conversation, trail.history):
        with pytest.raises(InvalidMessage):
            ask(text)
    with pytest.raises(InvalidMessage):
        trail.update_status(text, MessageStatus.FAILED)


@pytest.mark.parametrize(("days", "limit"), [(float("nan"), 1), (1e12, 1), (-1, 1), (1, 0), (1, -1), (1, 10**30)])
def test_history_with_invalid_days_or_limit_is_refused(trail: MessageAuditTrail, days: float, limit: int) -> None:
    """Days and limit have bounds."""
    with pytest.raises(InvalidMessage, match=r"days|limit"):
        trail.history("worker-1", days, limit=limit)


def test_reasons_of_holds(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """A reason that no database accepts is refused. Any other is stored unchanged."""
    retention = Retention(ledger.database)
    for text in TEXTS:
        reason = f"because {text}"
        value = agent()
        if "\x00" in text or "\ud800" in text:
            with pytest.raises(InvalidMessage, match="reason"):
                retention.hold(HoldKind.AGENT, value, reason)
            continue
        retention.hold(HoldKind.AGENT, value, reason)
        assert [hold.reason for hold in retention.holds() if hold.value == value] == [reason]
        retention.release(HoldKind.AGENT, value)


def test_erasing_by_text_is_literal(ledger: Ledger, trail: MessageAuditTrail) -> None:
    """Percent signs and quotes erase payloads that contain them, and no others."""
    to, mark = agent(), uuid4().hex
    named = Message(from_agent="boss", to_agent=to, payload=f"{mark} 100%_' \x00")
    other = Message(from_agent="boss", to_agent=to, payload=f"{mark} 100x ' ")
    ledger.begin_recording([(named, "command"), (other, "command")])()
    assert erase_rows(ledger.database, containing=f"{mark} 100%_' \x00").messages == 1
    assert trail.receipt(named.message_id).payload is None
    assert trail.receipt(other.message_id).payload == other.payload


@pytest.fixture
def broker(ledger_broker: Broker) -> Broker:
    """Valkey with the ledger in PostgreSQL."""
    return ledger_broker


def test_hostile_payloads_travel_unchanged(app: AgentApp, probe: str) -> None:
    """The handler and the ledger receive equal payloads."""
    bus = MessageBus(app)
    payloads = [{"texts": {text: text for text in TEXTS}}, {"values": VALUES[:-2]}]
    sent = bus.send_many(Message(from_agent="tests", to_agent=probe, payload=payload) for payload in payloads)
    for receipt, payload in zip(sent, payloads, strict=True):
        until(lambda id_=receipt.message_id: bus.receipt(id_).status.final, "the end of the message")
        record = MessageAuditTrail(app.ledger).receipt(receipt.message_id)
        assert (record.receipt.status, record.payload) == (MessageStatus.HANDLED, payload)


def test_hostile_error_texts_of_handlers_are_stored(app: AgentApp, probe: str) -> None:
    """A handler raises each of the texts: the message has failed, with the error in its receipt."""
    bus = MessageBus(app)
    sent = bus.send_many(Message(from_agent="tests", to_agent=probe, payload={"fail": text}) for text in TEXTS)
    for receipt in sent:
        until(lambda id_=receipt.message_id: bus.receipt(id_).status.final, "the end of the message")
        assert bus.receipt(receipt.message_id).status is MessageStatus.FAILED
        assert (bus.receipt(receipt.message_id).error or "").startswith("ValueError: ")


def test_valid_but_unused_id_is_unknown(trail: MessageAuditTrail) -> None:
    """A valid id that no message has raises UnknownMessage."""
    with pytest.raises(UnknownMessage):
        trail.receipt("x" * 128)
