"""A dead letter: what can be known of it, and what it says when it can be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Self

from waooaw_celery.broker.incoming.guard import read
from waooaw_celery.errors import DecodingFailed, InvalidMessage, UnknownAgent
from waooaw_celery.messages.headers import payload_of
from waooaw_celery.messages.message import ENVELOPE_HEADER, Message
from waooaw_celery.messages.queues import AGENT_QUEUES, HandlerName
from waooaw_celery.wire.caps import Caps


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that died.

    Attributes:
        id: of the letter, not of the message; each broker has its own kind.
        queue: from which it came.
        reason: why it died, a sentence.
        at: when, aware UTC.
        raw: the message's bytes, in the form in which Kombu's messages travel on Redis.
        message_id: the message's own id; None where it cannot be read, as all that follows.
        task: name of its task, such as ``worker-1.command``.
        agent: to whom it went: the agent of its queue, or else of its task.
        handler: name of its handler, where its task is an agent's.
        from_agent: who sent it.
        resent: how often it had been sent again from the dead letters.
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

    @classmethod
    def of(cls, id_: str, queue: str, reason: str, at: datetime, raw: bytes) -> Self:
        """Return the letter that a broker keeps, with what can be read of its message.

        Args:
            id_: the letter's id.
            queue: from which its message came.
            reason: why it died.
            at: when, aware UTC.
            raw: the message's bytes, which may be anything.
        """
        headers = _mapping(_message_of(raw).get("headers"))
        envelope = _mapping(headers.get(ENVELOPE_HEADER))
        task = _text(headers.get("task"))
        target = HandlerName.parse(task) if task is not None else None
        resent = envelope.get("resent")
        return cls(
            id=id_,
            queue=printable(queue),
            reason=printable(reason),
            at=at,
            raw=raw,
            message_id=_text(headers.get("id")),
            task=task,
            agent=_agent_of(queue) or (target.agent if target is not None else None),
            handler=target.handler if target is not None else None,
            from_agent=_text(envelope.get("from")),
            resent=resent if type(resent) is int and resent >= 0 else 0,
        )


class DeadLetterContent(NamedTuple):
    """What a letter says.

    Attributes:
        target: the handler that it was for.
        message: the message.
        args: positional arguments of its task.
        kwargs: keyword arguments of its task.
        after: what Celery was to do afterwards: options of ``apply_async``.
    """

    target: HandlerName
    message: Message
    args: list[Any]
    kwargs: dict[str, Any]
    after: dict[str, Any]


def read_content(letter: DeadLetter, caps: Caps) -> DeadLetterContent:
    """Read a letter.

    Args:
        letter: which.
        caps: what is accepted.

    Raises:
        DecodingFailed: it cannot be read, by this version and with these caps.
        InvalidMessage: its envelope cannot be read, or it has none, or what it says breaks a rule.
        UnknownAgent: it is no message to an agent.
    """
    delivery = read(_plain(letter.raw), caps)
    if delivery.decoded is None:
        raise DecodingFailed("it is no task")
    headers = delivery["headers"]
    target = HandlerName.parse(headers["task"])
    if target is None:
        raise UnknownAgent(f"its task {headers['task']!r} is no agent's handler")
    args, kwargs, embed = delivery.decoded
    embed = embed or {}
    own = ENVELOPE_HEADER in headers
    wanted = {name: embed.get(key) for name, key in _AFTER.items() if embed.get(key)}
    if wanted and not own:
        raise InvalidMessage(FOREIGN_CALLBACKS)
    message = Message.from_headers(headers, target.agent, payload_of(target.handler, args, kwargs))
    return DeadLetterContent(target, message, list(args), kwargs, wanted)


#: Options of ``apply_async`` for what Celery does afterwards, and their names in the body of a task.
_AFTER = {"link": "callbacks", "link_error": "errbacks", "chain": "chain"}
#: Parts of a task's body that make Celery call other tasks.
CALLBACK_FIELDS = ("callbacks", "errbacks", "chain", "chord")
#: Why a message to an agent is refused that has one of them.
FOREIGN_CALLBACKS = "it comes from no agent and names tasks to call afterwards, which are not obeyed"


def printable(text: str) -> str:
    """Return a text that fits on a line of a terminal or a log, whatever it was."""
    return text if text.isprintable() else ascii(text)


def _message_of(raw: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return _mapping(found[0] if isinstance(found, list) and found else found)


def _plain(raw: bytes) -> bytes:
    """Return a message alone where it is kept with the note of where it was to go back."""
    if not raw.startswith(b"[{"):
        return raw
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    return json.dumps(found[0]).encode()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.isprintable() and 0 < len(value) < 256 else None


def _agent_of(queue: str) -> str | None:
    return _text(queue.removeprefix(AGENT_QUEUES)) if queue.startswith(AGENT_QUEUES) else None
