"""Templates of task messages: what all messages of one sender to one handler share is encoded once.

A template is the text of an ordinary message, cut where its own values stand. So a message has the same fields, in
the same order, as one that Celery and Kombu write.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from operator import itemgetter
from typing import Any, TypeAlias
from uuid import uuid4

from waooaw_celery.broker.incoming.delivery import to_text
from waooaw_celery.messages.message import ENVELOPE_HEADER, Message
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER
from waooaw_celery.messages.trace_context import TRACE_HEADERS, TraceContext
from waooaw_celery.wire.packer import PackedBody, TaskOptions

#: The most templates of one application. The oldest makes room for a new one.
MAX_TEMPLATES = 1024
#: What stands in a template's text for a value. No name, id or header contains it.
_MARK = f"mark of a value {uuid4().hex} "
_MARKS = re.compile(f'"{_MARK}([a-z_-]+)"')
#: The values of a message, in the order in which ``fill`` gives them.
_VALUES = (
    *("body", "id", "root", "parent", "expires", "ttl", "correlation", "sent_at", "reply_to", "tag"),
    *TRACE_HEADERS,
)
#: The values in which the messages of one event differ, in the order in which the sender gives them.
OWN_VALUES = ("task", "id", "to", "queue", "tag")
#: Those that they share.
_EVENT_VALUES = ("body", "root", "parent", "expires", "ttl", "correlation", "sent_at", "event", *TRACE_HEADERS)
#: Ends a piece of the text of an event. JSON writes it in another way.
_END = "\0"
_NULL, _EMPTY = "null", '""'

#: The parts of a template's text, by turns what stays and the name of a value, and what puts a message's values
#: into that order.
_Template: TypeAlias = "tuple[list[str], Callable[[tuple[str, ...]], tuple[str, ...]]]"

#: The same of an event's messages, and the places of the values between its pieces.
_EventTemplate: TypeAlias = "tuple[list[str], Callable[[tuple[str, ...]], tuple[str, ...]], tuple[int, ...]]"


class TaskTemplates:
    """The templates of one application. Safe for several threads."""

    def __init__(self) -> None:
        self._templates: dict[tuple[Any, ...], _Template] = {}
        self._events: dict[tuple[Any, ...], _EventTemplate] = {}
        self._options: TaskOptions | None = None

    def options_of(self, task: Callable[[], Any]) -> TaskOptions:
        """Return the third part of the body of a task without callbacks. It is the same for all.

        Args:
            task: makes such a task, as Celery does.
        """
        if self._options is None:
            self._options = TaskOptions.of(task().body[2])
        return self._options

    def text(
        self,
        target: HandlerName,
        message: Message,
        body: PackedBody,
        tag: str,
        reply_to: str | None,
        others: tuple[Any, ...],
        write: Callable[[HandlerName, Message, PackedBody], dict[str, Any]],
    ) -> str | None:
        """Return the text of a message as it travels on Redis.

        Args:
            target: the handler that the message is for.
            message: the message.
            body: its body, which is text.
            tag: its delivery tag.
            reply_to: the header that names who waits for its answer, as JSON; None: nobody does.
            others: what else the text depends on, such as the name of this process.
            write: writes one message as Kombu does. It is called when there is no template yet.

        Returns:
            None if there is no template for such a message: it delivers an event, or its body is binary.
        """
        if message.event is not None or type(body.body) is not str:
            return None
        key = (
            target,
            message.from_agent,
            message.to_agent,
            message.message_type,
            message.priority,
            message.retention,
            message.ledger,
            message.identity,
            message.resent,
            message.capability,
            message.serializer,
            message.compression,
            None if message.trace is None else tuple(message.trace),
            body[1:],
            reply_to is None,
            others,
        )
        template = self._templates.get(key)
        if template is None:
            template = self._templates[key] = _cut(write(target, message, body))
            while len(self._templates) > MAX_TEMPLATES:
                self._templates.pop(next(iter(self._templates)), None)
        parts, in_order = template
        return _filled(parts, in_order(_values(message, body.body, tag, reply_to)))

    def pieces(
        self,
        target: HandlerName,
        message: Message,
        body: PackedBody,
        others: tuple[Any, ...],
        write: Callable[[HandlerName, Message, PackedBody], dict[str, Any]],
    ) -> tuple[list[str], tuple[int, ...]] | None:
        """Return the text that the messages of an event share.

        Args:
            target: the handler that one of them is for.
            message: that message.
            body: their body.
            others, write: as for ``text``.

        Returns:
            The pieces of the text, and the values that stand between them: their places in ``OWN_VALUES``, from 1.
            None if they deliver no event.
        """
        if message.event is None:
            return None
        content = body.body if isinstance(body.body, str) else b64encode(body.body).decode()
        key = (
            "event",
            message.from_agent,
            message.message_type,
            message.priority,
            message.retention,
            message.ledger,
            message.identity,
            message.resent,
            message.capability,
            message.serializer,
            message.compression,
            None if message.trace is None else tuple(message.trace),
            type(body.body),
            body[1:],
            others,
        )
        template = self._events.get(key)
        if template is None:
            template = self._events[key] = _cut_event(write(target, message, body))
            while len(self._events) > MAX_TEMPLATES:
                self._events.pop(next(iter(self._events)), None)
        parts, in_order, places = template
        values = _values(message, content, "", None)
        event = to_text(message.event.to_envelope())
        shared = (values[0], *values[2:8], event, *values[10:])
        return _filled(parts, in_order(shared)).split(_END), places


def own_values(target: HandlerName, message: Message, queue: str, tag: str) -> tuple[str, ...]:
    """Return the values of one message of an event, as JSON, in the order of ``OWN_VALUES``.

    Args:
        target: the handler that the message is for.
        message: the message.
        queue: the name of its queue.
        tag: its delivery tag.
    """
    task, to, queue = _names(target, message.to_agent, queue)
    return task, f'"{message.message_id}"', to, queue, f'"{tag}"'


@lru_cache(maxsize=4096)
def _names(target: HandlerName, to_agent: str, queue: str) -> tuple[str, str, str]:
    """Return the names of a task, a recipient and a queue as JSON."""
    return encode_basestring_ascii(str(target)), encode_basestring_ascii(to_agent), encode_basestring_ascii(queue)


def _values(message: Message, body: str, tag: str, reply_to: str | None) -> tuple[str, ...]:
    """Return the values of a message as JSON. An id has no character that JSON writes in another way."""
    expires_at, parent, ttl = message.expires_at, message.causation_id, message.ttl_seconds
    values = (
        encode_basestring_ascii(body),
        f'"{message.message_id}"',
        f'"{message.conversation_id}"',
        _NULL if parent is None else f'"{parent}"',
        _NULL if expires_at is None else f'"{expires_at.isoformat()}"',
        _NULL if ttl is None else repr(ttl),
        f'"{message.correlation_id}"',
        f'"{message.sent_at.isoformat()}"',
        reply_to or _NULL,
        f'"{tag}"',
    )
    return values if message.trace is None else (*values, *_trace_values(message.trace))


def _trace_values(trace: TraceContext) -> tuple[str, ...]:
    """Return the trace headers as JSON, in the order of ``TRACE_HEADERS``; those that are missing are not read."""
    return tuple([encode_basestring_ascii(trace[name]) if name in trace else _EMPTY for name in TRACE_HEADERS])


def _filled(parts: list[str], values: tuple[str, ...]) -> str:
    """Return the text of a template with values in the place of every second part. `%` would read all of it."""
    filled = parts.copy()
    filled[1::2] = values
    return "".join(filled)


def _cut(message: dict[str, Any]) -> _Template:
    """Return the template of a message as Kombu writes it."""
    parts = _marked(message)
    return parts, itemgetter(*(_VALUES.index(value) for value in parts[1::2]))


def _cut_event(message: dict[str, Any]) -> _EventTemplate:
    """Return the template of an event's messages, from one of them as Kombu writes it."""
    message["headers"] |= {"task": f"{_MARK}task"}
    message["headers"][ENVELOPE_HEADER] |= {"to": f"{_MARK}to", "event": f"{_MARK}event"}
    message["properties"]["delivery_info"] |= {"routing_key": f"{_MARK}queue"}
    first, *rest = _marked(message)
    parts, shared, places = [first], list[int](), list[int]()
    for value, part in zip(rest[::2], rest[1::2], strict=True):
        if value in OWN_VALUES:
            places.append(OWN_VALUES.index(value) + 1)
            parts[-1] += _END + part
        else:
            shared.append(_EVENT_VALUES.index(value))
            parts += value, part
    return parts, itemgetter(*shared), tuple(places)


def _marked(message: dict[str, Any]) -> list[str]:
    """Return the text of a message in parts: by turns what stays, and the name of a value."""
    headers, properties = message["headers"], message["properties"]
    own = {"expires": "expires", "id": "id", "root_id": "root", "parent_id": "parent", REPLY_TO_HEADER: "reply_to"}
    own |= {name: name for name in TRACE_HEADERS}
    headers |= {name: _MARK + value for name, value in own.items() if name in headers}
    envelope = {"ttl_seconds": "ttl", "correlation_id": "correlation", "sent_at": "sent_at"}
    headers[ENVELOPE_HEADER] |= {name: _MARK + value for name, value in envelope.items()}
    properties |= {"correlation_id": f"{_MARK}id", "delivery_tag": f"{_MARK}tag"}
    return _MARKS.split(to_text(message | {"body": f"{_MARK}body"}))
