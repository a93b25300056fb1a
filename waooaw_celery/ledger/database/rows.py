"""What is written to the ledger: messages and facts as text, for the queue, the spool and the database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.publish_options import PublishOptions
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.messages.validation import JSON, tagged

RowKind = Literal["message", "fact", "stray", "refusal", "withdrawal"]

#: Why a message has failed whose sender was told that it is refused.
WITHDRAWN = "refused: the ledger did not confirm it in time; it was never published"

# Made once: ``json.dumps`` would make an encoder for each payload.
_encode = json.JSONEncoder(check_circular=False).encode
_readable = json.JSONEncoder(ensure_ascii=False, check_circular=False, default=tagged).encode
_escaped = json.JSONEncoder(check_circular=False, default=tagged).encode
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False, default=tagged).encode


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One row to be.

    Attributes:
        kind: ``message``; ``fact`` of a message that its sender wrote down; or ``stray``, a fact of a message
            about which the ledger must be asked first, since its envelope does not say where its row is; or
            ``refusal``, that messages of an agent were refused; or ``withdrawal``, that a message was not
            published, which the ledger may have taken without confirming it.
        message_id: of which message; of a refusal, the agent.
        text: the row as a JSON object, its moments as ISO 8601 text.
    """

    kind: RowKind
    message_id: str
    text: str

    def age(self, now: datetime) -> float:
        """Return how many seconds ago a fact happened."""
        return (now - datetime.fromisoformat(json.loads(self.text)["at"])).total_seconds()


def message_row(message: Message, handler: str, retention: RetentionPolicy) -> LedgerRow:
    """Return the entry of a message.

    Args:
        message: what is said.
        handler: name of the handler it is for.
        retention: how long it is kept when it does not say so itself.
    """
    return LedgerRow("message", message.message_id, _encode(_message_row(message, handler, retention)))


def message_rows(
    messages: Sequence[tuple[Message, str]],
    retention: RetentionPolicy,
    besides: Mapping[str, PublishOptions] | None = None,
) -> list[LedgerRow]:
    """Return the entries of messages, each with the name of its handler; those of an event share its payload.

    Args:
        messages: the messages.
        retention: how long one is kept that does not say so itself.
        besides: what their publishes have besides, by id.
    """
    entries: list[LedgerRow] = []
    of_event: dict[str, Any] | None = None
    for message, handler in messages:
        event = message.event
        row = _message_row(message, handler, retention, of_event if of_event and event is of_event["is"] else None)
        of_event = None if event is None else {"is": event} | {name: row[name] for name in _SHARED}
        if besides and message.message_id in besides:
            row |= _besides(besides[message.message_id])
        entries.append(LedgerRow("message", message.message_id, _encode(row)))
    return entries


def _besides(remembered: PublishOptions) -> dict[str, Any]:
    said = remembered.to_json()
    return {"options": payload_text(said) if said else None, "unrepeatable": remembered.unrepeatable}


def published_event_rows(record: Message, retention: RetentionPolicy, at: datetime) -> list[LedgerRow]:
    """Return the entries of the record of an event: as said to nobody, on its topic, and ended with that.

    Args:
        record: the event.
        retention: how long it is kept when it does not say so itself.
        at: when it was published.
    """
    row = _message_row(record, record.topic or "", retention)
    fact = MessageFact(message_id=record.message_id, event=MessageEvent.PUBLISHED, at=at)
    kept = (record.retention or retention).until(record.sent_at)
    return [LedgerRow("message", record.message_id, _encode(row)), keyed_event_row(fact, kept, record.sent_at)]


def event_row(fact: MessageFact, retention: RetentionPolicy) -> LedgerRow:
    """Return the entry of a fact.

    A message that a door with a ledger let through says how long it is kept. One that does not was published by
    something else: its fact carries the message's row along, for the ledger to write unless it has it.
    """
    message = fact.message
    if message is not None and message.retention is not None:
        return keyed_event_row(fact, message.retention.until(message.sent_at), message.sent_at)
    said = message and _message_row(message, fact.handler, retention)
    # What another program published had who knows what besides: it cannot be published again as it was.
    row = _fact_row(fact) | {"message": said and {**said, "unrepeatable": True}}
    # The id may be anything: of a message that another program published.
    return LedgerRow("stray", storable(fact.message_id), json.dumps(row))


def delivery_row(fact: MessageFact, retention: RetentionPolicy) -> LedgerRow:
    """Return the entry of the fact that a worker begins with a message, which asks whether it has ended."""
    entry = event_row(fact, retention)
    return LedgerRow(entry.kind, entry.message_id, f'{{"asks": true, {entry.text[1:]}')


def keyed_event_row(fact: MessageFact, retain_until: datetime, sent_at: datetime) -> LedgerRow:
    """Return the entry of a fact about the message of these keys."""
    keys = {"retain_until": _text(retain_until), "sent_at": _text(sent_at)}
    return LedgerRow("fact", fact.message_id, _encode(_fact_row(fact) | keys))


def sent_row(message: Message, at: datetime, retention: RetentionPolicy) -> LedgerRow:
    """Return the entry of the fact that the broker has a message: what ``event_row`` returns, but sooner.

    Args:
        message: which; one that its sender wrote down.
        at: when the broker got it.
        retention: how long it is kept when it does not say so itself.
    """
    kept = _text((message.retention or retention).until(message.sent_at))
    # An id is made of letters, digits and a few signs: nothing in it could end the text.
    text = (
        f'{{"message_id":"{message.message_id}","at":"{_text(at)}","event":"sent","worker":"","terminal":false,'
        f'"attempt":0,"seconds":null,"error":null,"retain_until":"{kept}","sent_at":"{_text(message.sent_at)}"}}'
    )
    return LedgerRow("fact", message.message_id, text)


def withdrawal_row(entry: LedgerRow) -> LedgerRow:
    """Return the entry that a message was refused, and never published, though the ledger may take it.

    Args:
        entry: the message's.
    """
    said = json.loads(entry.text)
    fact = MessageFact(message_id=entry.message_id, event=MessageEvent.FAILED, error=WITHDRAWN)
    row = _fact_row(fact) | {"retain_until": said["retain_until"], "sent_at": said["sent_at"]}
    return LedgerRow("withdrawal", entry.message_id, _encode(row))


def refusal_row(agent: str, rule: str, minute: datetime, process: str, part: int, count: int) -> LedgerRow:
    """Return the entry of the fact that messages were refused.

    Args:
        agent: whose.
        rule: by which rule of its rate limit.
        minute: in which minute.
        process: which process tells it.
        part: how often it has told of this minute, with this.
        count: how many it did not tell of before.
    """
    row = {"agent": agent, "rule": storable(rule), "minute": _text(minute)}
    return LedgerRow("refusal", agent, _encode(row | {"process": process, "part": part, "count": count}))


def _fact_row(fact: MessageFact) -> dict[str, Any]:
    return {
        "message_id": storable(fact.message_id),
        "at": _text(fact.at),
        "event": fact.event.value,
        "worker": fact.worker or "",
        "terminal": fact.event.terminal,
        "attempt": fact.attempt,
        "seconds": fact.seconds,
        "error": fact.error and storable(fact.error),
    }


#: What is the same in the rows of all messages of an event, and takes a while to write.
_SHARED = ("payload", "payload_digest", "event")


def _message_row(
    message: Message, handler: str, retention: RetentionPolicy, shared: dict[str, Any] | None = None
) -> dict[str, Any]:
    row = {
        "message_id": message.message_id,
        "retain_until": _text((message.retention or retention).until(message.sent_at)),
        "from_agent": message.from_agent,
        "to_agent": message.to_agent,
        "handler": handler,
        "message_type": message.message_type.value,
        "priority": message.priority.rank,
        "correlation_id": message.correlation_id or message.message_id,
        "conversation_id": message.conversation_id or message.message_id,
        "causation_id": message.causation_id,
        "sent_at": _text(message.sent_at),
        "expires_at": message.expires_at and _text(message.expires_at),
        "topic": message.topic,
    }
    if not message.has_new_id:
        row["asks"] = True  # whether it is in the ledger, also with another retention or time of sending
    if shared is not None:
        return row | {name: shared[name] for name in _SHARED}
    return row | {
        # Text within the text: PostgreSQL would not take every string that JSON can write, but keeps it as JSON.
        "payload": payload_text(message.payload),
        "payload_digest": digest(message.payload),
        "event": message.event and _encode(message.event.to_envelope()),
    }


def payload_text(payload: JSON) -> str:
    """Return a payload as the JSON text that the ledger keeps: readable, so that it can be searched.

    What JSON lacks is written as it travels. Halves of surrogate pairs, which no database takes, are written as
    JSON's escapes, and all else then too.
    """
    text = _readable(payload)
    return text if text.isascii() or _encodable(text) else _escaped(payload)


def digest(payload: JSON) -> str:
    """Return the SHA-256, in hexadecimal, of a payload's canonical JSON: sorted keys, no spaces, ASCII."""
    return hashlib.sha256(_canonical(payload).encode()).hexdigest()


def _text(moment: datetime) -> str:
    return (moment if moment.tzinfo is UTC else moment.astimezone(UTC)).isoformat()


def storable(text: str) -> str:
    """Return a text that every database takes: PostgreSQL refuses NUL and halves of surrogate pairs."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
