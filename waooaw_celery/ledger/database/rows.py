"""Builds the rows of the ledger as JSON text, for the write buffer, the spool and the database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.publish_options import PublishOptions, options_of_messages
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.messages.validation import JSON, tagged

RowKind = Literal["message", "fact", "stray", "refusal", "withdrawal"]

#: The error of a message whose sender got AuditUnavailable, although the database wrote the message later.
WITHDRAWN = "refused: the ledger did not confirm it in time; it was never published"

# Created once: ``json.dumps`` creates an encoder for each call.
_encode = json.JSONEncoder(check_circular=False).encode
_encode_readable = json.JSONEncoder(ensure_ascii=False, check_circular=False, default=tagged).encode
_encode_escaped = json.JSONEncoder(check_circular=False, default=tagged).encode
_encode_canonical = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), check_circular=False, default=tagged
).encode


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A row that is to be written to the ledger.

    Attributes:
        kind: what the row is:

            - ``message``: a message.
            - ``fact``: an event of a message whose sender uses a ledger.
            - ``stray``: an event of a message whose envelope does not name its partition. The message's row must
              be looked up before the event is written.
            - ``refusal``: a count of messages that a rate limit refused.
            - ``withdrawal``: a message was not published, but the database may have written it without confirming.
        message_id: the message; for a refusal, the agent.
        text: the columns as a JSON object, with times in ISO 8601.
    """

    kind: RowKind
    message_id: str
    text: str

    def age(self, now: datetime) -> float:
        """Return the seconds since the event of this row."""
        return (now - datetime.fromisoformat(json.loads(self.text)["at"])).total_seconds()


def message_row(message: Message, handler: str, retention: RetentionPolicy) -> LedgerRow:
    """Return the row of a message.

    Args:
        message: the message.
        handler: the name of the handler that receives it.
        retention: how long to keep the message if it has no retention of its own.
    """
    columns = _message_columns(message, handler, retention)
    if message.reference is not None:
        columns |= _option_columns(options_of_messages([message], None)[message.message_id])
    return LedgerRow("message", message.message_id, _encode(columns))


def message_rows(
    messages: Sequence[tuple[Message, str]],
    retention: RetentionPolicy,
    options_by_id: Mapping[str, PublishOptions] | None = None,
    payload_texts: Mapping[str, str] | None = None,
) -> list[LedgerRow]:
    """Return the rows of several messages. Messages of the same event share the encoded payload.

    Args:
        messages: each message with the name of the handler that receives it.
        retention: how long to keep a message that has no retention of its own.
        options_by_id: the publish options of messages that have some, by message id.
        payload_texts: payloads that are encoded as JSON in ASCII already, by message id.
    """
    rows: list[LedgerRow] = []
    shared: dict[str, Any] | None = None  # the event of the last message, and its encoded columns
    for position, (message, handler) in enumerate(messages):
        event = message.event
        same_event = shared if shared and event is shared["of"] else None
        text = payload_texts.get(message.message_id) if payload_texts else None
        columns = _message_columns(message, handler, retention, same_event, text)
        shared = None if event is None else {"of": event} | {name: columns[name] for name in _EVENT_COLUMNS}
        if options_by_id and message.message_id in options_by_id:
            columns |= _option_columns(options_by_id[message.message_id])
        if position:  # rows are written in the order of their ids, and the order of sending must stay known
            columns["position"] = position
        rows.append(LedgerRow("message", message.message_id, _encode(columns)))
    return rows


def _option_columns(options: PublishOptions) -> dict[str, Any]:
    encoded = options.to_json()
    return {"options": payload_text(encoded) if encoded else None, "unrepeatable": options.unrepeatable}


def published_event_rows(record: Message, retention: RetentionPolicy, at: datetime) -> list[LedgerRow]:
    """Return the two rows that record a published event: the event, and the fact PUBLISHED, which is terminal.

    Args:
        record: the event, with its topic and without a recipient.
        retention: how long to keep the record if it has no retention of its own.
        at: when the event was published.
    """
    return _ended_rows(record, record.topic or "", MessageEvent.PUBLISHED, retention, at)


def answer_rows(answer: Message, retention: RetentionPolicy) -> list[LedgerRow]:
    """Return the two rows that record an answer: the RESPONSE, and the fact ANSWERED, which is terminal.

    Args:
        answer: the answer, from the agent that was asked to the one that asked.
        retention: how long to keep the answer if it has no retention of its own.
    """
    return _ended_rows(answer, answer.message_type.value, MessageEvent.ANSWERED, retention, answer.sent_at)


def _ended_rows(
    message: Message, handler: str, event: MessageEvent, retention: RetentionPolicy, at: datetime
) -> list[LedgerRow]:
    fact = MessageFact(message_id=message.message_id, event=event, at=at)
    retain_until = (message.retention or retention).until(message.sent_at)
    return [message_row(message, handler, retention), keyed_event_row(fact, retain_until, message.sent_at)]


def event_row(fact: MessageFact, retention: RetentionPolicy) -> LedgerRow:
    """Return the row of one event of a message.

    A message that was published with a ledger has its retention in its envelope. A message without one comes from
    another program: the row of the event then contains the message too, and the ledger writes both.
    """
    message = fact.message
    if message is not None and message.retention is not None:
        return keyed_event_row(fact, message.retention.until(message.sent_at), message.sent_at)
    message_columns = message and _message_columns(message, fact.handler, retention)
    # The other program's publish options are unknown, so the message cannot be published again unchanged.
    columns = _event_columns(fact) | {"message": message_columns and {**message_columns, "unrepeatable": True}}
    # Another program may use any text as an id.
    return LedgerRow("stray", storable(fact.message_id), json.dumps(columns))


def delivery_row(fact: MessageFact, retention: RetentionPolicy) -> LedgerRow:
    """Return the row of the event DELIVERED. Writing it checks whether the message has ended already."""
    row = event_row(fact, retention)
    return LedgerRow(row.kind, row.message_id, f'{{"check_ended": true, {row.text[1:]}')


def keyed_event_row(fact: MessageFact, retain_until: datetime, sent_at: datetime) -> LedgerRow:
    """Return the row of an event whose message has these keys."""
    keys = {"retain_until": _iso(retain_until), "sent_at": _iso(sent_at)}
    return LedgerRow("fact", fact.message_id, _encode(_event_columns(fact) | keys))


def sent_row(message: Message, at: datetime, retention: RetentionPolicy) -> LedgerRow:
    """Return the row of the event SENT. It equals that of ``event_row``, and takes less time to build.

    Args:
        message: a message that its sender has written to the ledger.
        at: when the broker accepted it.
        retention: how long to keep the message if it has no retention of its own.
    """
    retain_until = _iso((message.retention or retention).until(message.sent_at))
    # A valid id has only letters, digits and a few punctuation marks, none of which needs escaping.
    text = (
        f'{{"message_id":"{message.message_id}","at":"{_iso(at)}","event":"sent","worker":"","terminal":false,'
        f'"attempt":0,"seconds":null,"error":null,"retain_until":"{retain_until}",'
        f'"sent_at":"{_iso(message.sent_at)}"}}'
    )
    return LedgerRow("fact", message.message_id, text)


def withdrawal_row(row: LedgerRow) -> LedgerRow:
    """Return the row that marks a message as never published, in case the database writes it after all.

    Args:
        row: the row of the message.
    """
    message_columns = json.loads(row.text)
    fact = MessageFact(message_id=row.message_id, event=MessageEvent.FAILED, error=WITHDRAWN)
    keys = {name: message_columns[name] for name in ("retain_until", "sent_at")}
    return LedgerRow("withdrawal", row.message_id, _encode(_event_columns(fact) | keys))


def refusal_row(agent: str, rule: str, minute: datetime, process: str, part: int, count: int) -> LedgerRow:
    """Return the row of messages that a rate limit refused.

    Args:
        agent: the sender.
        rule: the rule that refused, such as ``10/second``.
        minute: the minute in which they were refused.
        process: the process that counted them.
        part: the number of this row among those that the process writes for this minute.
        count: the messages that its earlier rows do not count.
    """
    columns = {"agent": agent, "rule": storable(rule), "minute": _iso(minute)}
    return LedgerRow("refusal", agent, _encode(columns | {"process": process, "part": part, "count": count}))


def _event_columns(fact: MessageFact) -> dict[str, Any]:
    return {
        "message_id": storable(fact.message_id),
        "at": _iso(fact.at),
        "event": fact.event.value,
        "worker": fact.worker or "",
        "terminal": fact.event.terminal,
        "attempt": fact.attempt,
        "seconds": fact.seconds,
        "error": fact.error and storable(fact.error),
    }


#: The payload of a message whose payload is in the store of large ones.
_NOTHING = "null"
#: Columns that are equal in all messages of one event, and slow to encode.
_EVENT_COLUMNS = ("payload", "payload_digest", "event")


def _message_columns(
    message: Message,
    handler: str,
    retention: RetentionPolicy,
    shared: dict[str, Any] | None = None,
    text: str | None = None,
) -> dict[str, Any]:
    columns = {
        "message_id": message.message_id,
        "retain_until": _iso((message.retention or retention).until(message.sent_at)),
        "from_agent": message.from_agent,
        "to_agent": message.to_agent,
        "handler": handler,
        "message_type": message.message_type.value,
        "priority": message.priority.rank,
        "correlation_id": message.correlation_id or message.message_id,
        "conversation_id": message.conversation_id or message.message_id,
        "causation_id": message.causation_id,
        "identity": message.identity and storable(message.identity),
        "sent_at": _iso(message.sent_at),
        "expires_at": message.expires_at and _iso(message.expires_at),
        "topic": message.topic,
    }
    if not message.has_new_id:
        # The ledger may have this id already, under another retention or time of sending.
        columns["check_known"] = True
    if shared is not None:
        return columns | {name: shared[name] for name in _EVENT_COLUMNS}
    is_elsewhere = message.reference is not None
    if is_elsewhere:
        text = _NOTHING
    elif text is None or "\\u" in text:  # an escaped character: the ledger's text is to be readable
        text = payload_text(message.payload)
    return columns | {
        # Encoded twice: PostgreSQL does not accept every JSON string as text, but stores it in a JSON column.
        "payload": text,
        # A receiver that never loaded the payload knows only the digest of what is stored.
        "payload_digest": _stored_digest(message) if is_elsewhere else digest(message.payload),
        "event": message.event and _encode(message.event.to_envelope()),
    }


def _stored_digest(message: Message) -> str:
    reference = message.reference
    if message.payload is None and reference is not None:
        return reference.sha256
    return digest(message.payload)


def payload_text(payload: JSON) -> str:
    """Return a payload as the JSON text that the ledger stores. It is readable, so that you can search it.

    Values that JSON lacks are written in their wire form. No database accepts unpaired surrogates: a payload that
    has some is written with JSON escapes throughout.
    """
    text = _encode_readable(payload)
    return text if text.isascii() or _is_utf8(text) else _encode_escaped(payload)


def digest(payload: JSON) -> str:
    """Return the SHA-256 of a payload's canonical JSON (sorted keys, no spaces, ASCII), in hexadecimal."""
    return hashlib.sha256(canonical_json(payload).encode()).hexdigest()


def canonical_json(value: JSON) -> str:
    """Return the one JSON text of a value: with sorted keys, without spaces, in ASCII."""
    return _encode_canonical(value)


def _iso(time: datetime) -> str:
    return (time if time.tzinfo is UTC else time.astimezone(UTC)).isoformat()


def storable(text: str) -> str:
    """Return a text that every database accepts: PostgreSQL refuses NUL and unpaired surrogates."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
