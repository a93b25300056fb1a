"""What a publish has besides its message: remembered in the ledger, so that it can be published again the same.

A plain message has nothing besides. A ``.delay`` may have what comes after it (callbacks, the rest of a chain, a
chord) and when it is due; a request has who waits for its answer.
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
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER, ReplyTo
from waooaw_celery.messages.validation import JSON, json_copy

#: The Celery header of a message that was recovered: how often.
RECOVERED_HEADER = "waooaw_recovered"
#: What is remembered of the options of ``send_task``, by the names that Celery's message has for them.
_KEPT = {
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
#: Headers that the door sets itself.
_OURS = (ENVELOPE_HEADER, REPLY_TO_HEADER, RECOVERED_HEADER, "expires")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOptions:
    """What a publish had besides its message.

    Attributes:
        call: how the answer of a request is to come.
        task: what Celery's task has besides: callbacks, the rest of its chain, its group, when it is due, how it
            travels.
        headers: those that its sender added.
        positional: whether a method was called with positional arguments.
        serializer, compression: how its message says that it travels.
        resent: how often its message says that it was sent again as a dead letter.
        repeatable: whether it can be published again as it was.
    """

    call: ReplyTo | None = None
    task: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    positional: bool = False
    serializer: str | None = None
    compression: str | None = None
    resent: int = 0
    repeatable: bool = True

    @property
    def unrepeatable(self) -> bool:
        """Whether it is never published again: whoever waits for the answer does not wait for a late one."""
        return not self.repeatable or (self.call is not None and self.call.on_reply is None)

    def to_json(self) -> dict[str, JSON]:
        """Return what the ledger keeps; empty when there is nothing besides."""
        said: dict[str, JSON] = {
            "call": self.call and self.call.to_header(),
            "task": dict(self.task),
            "headers": dict(self.headers),
            "positional": self.positional,
            "serializer": self.serializer,
            "compression": self.compression,
            "resent": self.resent,
            "unrepeatable": not self.repeatable,
        }
        return {name: value for name, value in said.items() if value}

    @classmethod
    def from_json(cls, said: Mapping[str, Any] | None) -> Self:
        """Read what the ledger kept."""
        said = said or {}
        return cls(
            call=ReplyTo.from_header(said.get("call")),
            task=said.get("task", {}),
            headers=said.get("headers", {}),
            positional=said.get("positional", False),
            serializer=said.get("serializer"),
            compression=said.get("compression"),
            resent=said.get("resent", 0),
            repeatable=not said.get("unrepeatable", False),
        )


def options_of_messages(messages: Iterable[Message], call: ReplyTo | None) -> dict[str, PublishOptions]:
    """Return what messages or requests have besides, by id; a plain one has nothing."""
    return {
        message.message_id: PublishOptions(call=call, **_of_envelope(message))
        for message in messages
        if call is not None or message.serializer is not None or message.compression is not None or message.resent
    }


def _of_envelope(message: Message) -> dict[str, Any]:
    """Return what the envelope of a message says and the ledger has no column for."""
    return {"serializer": message.serializer, "compression": message.compression, "resent": message.resent}


def options_of_task(
    handler: str, message: Message, args: Any, options: Mapping[str, Any], zone: tzinfo, usual: str
) -> PublishOptions | None:
    """Return what a ``.delay``, or a part of a canvas, has besides, or None when that is nothing.

    Args:
        handler: name of the handler that is called.
        message: the message that it is.
        args: its positional arguments.
        options: those of ``send_task``.
        zone: of moments in the options that have none.
        usual: the format that Celery names when nobody chose one.
    """
    task = {_KEPT[name]: options[name] for name in _KEPT if options.get(name) is not None}
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
    headers = {name: value for name, value in (options.get("headers") or {}).items() if name not in _OURS}
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
    except InvalidMessage:  # a format that carries more than JSON can: that is published, and cannot be kept
        return PublishOptions(repeatable=False)
    return PublishOptions(task=task, headers=headers, positional=positional, **envelope)


def due_at(remembered: PublishOptions) -> datetime | None:
    """Return the moment from which a message may first be handled, or None."""
    due = remembered.task.get("eta")
    return datetime.fromisoformat(due) if due else None
