"""A dead letter: what is known of it, and its message if it can be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Self

from waooaw_celery.broker.incoming.guard import read_item
from waooaw_celery.errors import DecodingFailed, InvalidMessage, UnknownAgent
from waooaw_celery.messages.headers import payload_of
from waooaw_celery.messages.log.escaping import escaped
from waooaw_celery.messages.message import ENVELOPE_HEADER, Message
from waooaw_celery.messages.queues import AGENT_QUEUES, HandlerName, takes_message
from waooaw_celery.messages.references.reference import Reference
from waooaw_celery.messages.validation import JSON, json_copy
from waooaw_celery.wire.caps import Caps

#: The options of ``apply_async`` for tasks to call afterwards, and their names in the body of a task.
_CALLBACK_OPTIONS = {"link": "callbacks", "link_error": "errbacks", "chain": "chain"}
#: The parts of a task's body that make Celery call other tasks.
CALLBACK_FIELDS = ("callbacks", "errbacks", "chain", "chord")
#: The reason for refusing a message to an agent that has one of them without an agent's envelope.
FOREIGN_CALLBACKS = "no agent sent it, but it names callbacks, errbacks, a chain or a chord"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DeadLetter:
    """A message that could not be handled.

    Attributes:
        id: The id of the dead letter, not of the message. Its form depends on the broker.
        queue: The queue that the message came from.
        reason: Why it died, a sentence.
        at: When it died, aware UTC.
        raw: The message's bytes, in the form in which messages travel on Redis.
        message_id: The id of the message; None if it cannot be read, like all attributes below.
        task: The name of its task, such as ``worker-1.command``.
        agent: The agent that it was for, by its queue, or else by its task.
        handler: The name of its handler, if its task is an agent's handler.
        from_agent: The agent that sent it.
        resent: How often it was already retried from the dead letters.
    """

    id: str
    queue: str
    reason: str
    at: datetime
    raw: bytes
    message_id: str | None
    task: str | None
    agent: str | None
    handler: str | None
    from_agent: str | None
    resent: int

    def __repr__(self) -> str:
        """Return what fits on a line: the id, the route and the reason, without the message's bytes."""
        return f"<DeadLetter {self.id}: {self.from_agent} to {self.task or self.queue}, {self.reason:.80}>"

    @classmethod
    def of(cls, id_: str, queue: str, reason: str, at: datetime, raw: bytes) -> Self:
        """Return a stored dead letter, with everything that can be read of its message.

        Args:
            id_: The id of the dead letter.
            queue: The queue that the message came from.
            reason: Why it died.
            at: When it died, aware UTC.
            raw: The message's bytes, which may be anything.
        """
        headers = _as_mapping(_parse_message(raw).get("headers"))
        envelope = _as_mapping(headers.get(ENVELOPE_HEADER))
        task = _as_text(headers.get("task"))
        target = HandlerName.parse(task) if task is not None else None
        resent = envelope.get("resent")
        return cls(
            id=id_,
            queue=escaped(queue),
            reason=escaped(reason),
            at=at,
            raw=raw,
            message_id=_as_text(headers.get("id")),
            task=task,
            agent=_agent_of(queue) or (target.agent if target is not None else None),
            handler=target.handler if target is not None else None,
            from_agent=_as_text(envelope.get("from")),
            resent=resent if type(resent) is int and resent >= 0 else 0,
        )


class DeadLetterContent(NamedTuple):
    """The message in a dead letter.

    Attributes:
        target: The handler that it was for.
        message: The message.
        args: The positional arguments of its task.
        kwargs: The keyword arguments of its task.
        callbacks: The tasks to call afterwards, as options of ``apply_async``.
    """

    target: HandlerName
    message: Message
    args: list[Any]
    kwargs: dict[str, Any]
    callbacks: dict[str, Any]


def read_content(dead_letter: DeadLetter, caps: Caps) -> DeadLetterContent:
    """Read the message in a dead letter.

    Args:
        dead_letter: The dead letter.
        caps: The limits and formats that are accepted.

    Raises:
        DecodingFailed: This version, with these limits, cannot read it.
        InvalidMessage: Its envelope is missing or invalid, or the message breaks a rule.
        UnknownAgent: It is not a message to an agent.
    """
    delivery = read_item(_without_route(dead_letter.raw), caps)
    if delivery.decoded is None:
        raise DecodingFailed("it is not a task")
    headers = delivery["headers"]
    target = HandlerName.parse(headers["task"])
    if target is None:
        raise UnknownAgent(f"its task {headers['task']!r} is not a handler of an agent")
    args, kwargs, embed = delivery.decoded
    embed = embed or {}
    callbacks = {option: embed.get(field) for option, field in _CALLBACK_OPTIONS.items() if embed.get(field)}
    if callbacks and ENVELOPE_HEADER not in headers:
        raise InvalidMessage(FOREIGN_CALLBACKS)
    message = Message.from_headers(headers, target.agent, payload_of(target.handler, args, kwargs))
    return DeadLetterContent(target, message, list(args), kwargs, callbacks)


def with_payload(content: DeadLetterContent, payload: JSON) -> DeadLetterContent:
    """Return the message of a dead letter with another payload.

    Args:
        content: The message.
        payload: The payload of the new message; for a method, a JSON object of its parameters.

    Raises:
        InvalidMessage: A message cannot carry the payload, or it is no object of a method's parameters.
    """
    copied = json_copy(payload, "payload")
    if takes_message(content.target.handler):
        args, kwargs = [copied], {}
    elif isinstance(copied, dict):
        args, kwargs = [], copied
    else:
        raise InvalidMessage(f"the payload for the method {content.target} must be an object of its parameters")
    message = content.message.evolve(payload=copied, reference=None)  # a large one is stored anew when it is sent
    return content._replace(message=message, args=args, kwargs=kwargs)


def payload_in(content: DeadLetterContent, load: Callable[[Reference], tuple[list[Any], dict[str, Any]]]) -> JSON:
    """Return the payload of a dead letter; one that travelled by reference is loaded.

    Args:
        content: The message.
        load: Returns the arguments that a reference stands for.

    Raises:
        PayloadMissing, PayloadAltered, ReferenceStoreUnavailable: It cannot be loaded.
    """
    reference = content.message.reference
    return content.message.payload if reference is None else payload_of(content.target.handler, *load(reference))


def _parse_message(raw: bytes) -> Mapping[str, Any]:
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return _as_mapping(parsed[0] if isinstance(parsed, list) and parsed else parsed)


def _without_route(raw: bytes) -> bytes:
    """Return only the message of an entry of Kombu's unacknowledged messages, which also holds its route."""
    if not raw.startswith(b"[{"):
        return raw
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    return json.dumps(parsed[0]).encode()


def _as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.isprintable() and 0 < len(value) < 256 else None


def _agent_of(queue: str) -> str | None:
    return _as_text(queue.removeprefix(AGENT_QUEUES)) if queue.startswith(AGENT_QUEUES) else None
