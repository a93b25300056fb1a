"""Publish options: what a publish carries beside its message.

The ledger records them, so that a lost message can be published again unchanged. A plain message has none. A
``.delay`` may have callbacks, the rest of a chain, a chord and an ``eta``. A request has its reply-to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from typing import Any, Self

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.headers import parse_datetime
from waooaw_celery.messages.message import ENVELOPE_HEADER, Message
from waooaw_celery.messages.queues import takes_message
from waooaw_celery.messages.references.reference import Reference
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER, ReplyTo
from waooaw_celery.messages.trace_context import TRACE_HEADERS, TraceContext
from waooaw_celery.messages.validation import JSON, json_copy

#: The Celery header that counts how often a message was recovered.
RECOVERED_HEADER = "waooaw_recovered"
#: Options of ``send_task`` that are recorded, each with its name in Celery's message.
_RECORDED_OPTIONS = {
    "link": "callbacks",
    "link_error": "errbacks",
    "chain": "chain",
    "chord": "chord",
    "group_id": "group_id",
    "group_index": "group_index",
    "time_limit": "time_limit",
    "soft_time_limit": "soft_time_limit",
    "reply_to": "reply_to",
    "shadow": "shadow",
}
_LISTS = ("callbacks", "errbacks")
#: Headers that the publisher sets itself.
_PUBLISHER_HEADERS = (ENVELOPE_HEADER, REPLY_TO_HEADER, RECOVERED_HEADER, "expires", *TRACE_HEADERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOptions:
    """What a publish carries beside its message.

    Attributes:
        call: how a request is answered.
        task: Celery's options: callbacks, the rest of a chain, the group, the ``eta``, the serializer.
        headers: headers that the sender added.
        positional: whether a method was called with positional arguments.
        serializer, compression: the message's own choice of format and codec.
        resent: how often the message was retried from the dead-letter queue.
        capability: the capability that the sender named as recipient; None: it named the agent.
        trace: the trace context with which it was sent; None: there was none.
        reference: where the payload is kept; None: the message has it.
        repeatable: whether these options are complete, so that the message can be published again unchanged.
    """

    call: ReplyTo | None = None
    task: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    positional: bool = False
    serializer: str | None = None
    compression: str | None = None
    resent: int = 0
    capability: str | None = None
    trace: TraceContext | None = None
    reference: Reference | None = None
    repeatable: bool = True

    @property
    def unrepeatable(self) -> bool:
        """Whether the message must not be published again: its caller no longer waits for the answer by then."""
        return not self.repeatable or (self.call is not None and self.call.on_reply is None)

    def to_json(self) -> dict[str, JSON]:
        """Return the JSON object that the ledger stores, without empty values."""
        options: dict[str, JSON] = {
            "call": self.call and self.call.to_header(),
            "task": dict(self.task),
            "headers": dict(self.headers),
            "positional": self.positional,
            "serializer": self.serializer,
            "compression": self.compression,
            "resent": self.resent,
            "capability": self.capability,
            "trace": dict(self.trace or {}),
            "reference": self.reference and self.reference.to_dict(),
            "unrepeatable": not self.repeatable,
        }
        return {name: value for name, value in options.items() if value}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> Self:
        """Return the options from the JSON object that the ledger stored.

        Raises:
            InvalidMessage: the stored reply-to or reference is damaged.
        """
        stored = stored or {}
        reference = stored.get("reference")
        return cls(
            call=ReplyTo.from_header(stored.get("call")),
            task=stored.get("task", {}),
            headers=stored.get("headers", {}),
            positional=stored.get("positional", False),
            serializer=stored.get("serializer"),
            compression=stored.get("compression"),
            resent=stored.get("resent", 0),
            capability=stored.get("capability"),
            trace=stored.get("trace"),
            reference=None if reference is None else Reference.of_form(reference),
            repeatable=not stored.get("unrepeatable", False),
        )


def options_of_messages(messages: Iterable[Message], call: ReplyTo | None) -> dict[str, PublishOptions]:
    """Return the publish options of messages or requests, by message id; a plain message has no entry."""
    return {
        message.message_id: PublishOptions(call=call, **_of_envelope(message))
        for message in messages
        if call is not None
        or message.serializer is not None
        or message.compression is not None
        or message.resent
        or message.capability is not None
        or message.trace is not None
        or message.reference is not None
    }


def _of_envelope(message: Message) -> dict[str, Any]:
    """Return the envelope's fields for which the ledger has no column."""
    return {
        "serializer": message.serializer,
        "compression": message.compression,
        "resent": message.resent,
        "capability": message.capability,
        "trace": message.trace,
        "reference": message.reference,
    }


def options_of_task(
    handler: str, message: Message, args: Any, options: Mapping[str, Any], zone: tzinfo, usual: str
) -> PublishOptions | None:
    """Return the publish options of a ``.delay`` or of a part of a canvas, or None if it has none.

    Args:
        handler: name of the handler that is called.
        message: the message that is published.
        args: the positional arguments of the task.
        options: the options of ``send_task``.
        zone: time zone of datetimes in the options that have none.
        usual: the serializer that Celery names if the caller chose none.
    """
    task = {key: options[name] for name, key in _RECORDED_OPTIONS.items() if options.get(name) is not None}
    for name in _LISTS:
        if name in task and not isinstance(task[name], list | tuple):
            task[name] = [task[name]]
    due = parse_datetime(options.get("eta"), zone)
    if due is None and options.get("countdown"):
        due = message.sent_at + timedelta(seconds=float(options["countdown"]))
    if due is not None:
        task["eta"] = due.isoformat()
    if options.get("ignore_result") and not takes_message(handler):
        task["ignore_result"] = True
    stamped = options.get("stamped_headers")
    if stamped:
        task |= {"stamped_headers": list(stamped), **{name: options.get(name) for name in stamped}}
    headers = {
        name: value for name, value in (options.get("headers") or {}).items() if name not in _PUBLISHER_HEADERS
    }
    positional = bool(args) and not takes_message(handler)
    if options.get("compression"):
        task["compression"] = options["compression"]
    if options.get("serializer") not in (None, usual):
        task["serializer"] = options["serializer"]
    envelope = _of_envelope(message)
    if not (task or headers or positional or any(envelope.values())):
        return None
    try:
        task, headers = json_copy(task, "options"), json_copy(headers, "headers")
    except InvalidMessage:  # a format other than JSON can carry values that the ledger cannot store
        return PublishOptions(repeatable=False)
    return PublishOptions(task=task, headers=headers, positional=positional, **envelope)


def due_at(options: PublishOptions) -> datetime | None:
    """Return the time at which a message may first be handled, or None if it may at once."""
    due = options.task.get("eta")
    return datetime.fromisoformat(due) if due else None
