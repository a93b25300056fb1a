"""The reply-to header of a request: which agents wait for the answer, and how the worker sends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from waooaw_celery.errors import CircularRequest, InvalidMessage
from waooaw_celery.messages.validation import JSON

#: The Celery header that carries it; only the publisher sets it.
REPLY_TO_HEADER = "waooaw_reply_to"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyTo:
    """How a request is answered.

    Attributes:
        waiting: the agents whose handlers wait for this answer, the first caller first.
        stream: whether the answer is sent in parts. The request's time to live does not bound a stream.
        deadline: when the caller of a stream stops waiting, because its own caller does, aware; None: unknown. The
            deadline of any other request is its expiry.
        on_reply: the handler that gets the answer as a message, such as ``orchestrator.status_came``, so that
            nobody waits; or None.
        keep: whether the answer, as a message, never expires: a workflow may wait for it for months.
    """

    waiting: tuple[str, ...] = ()
    stream: bool = False
    on_reply: str | None = None
    deadline: datetime | None = None
    keep: bool = False

    def check(self, to_agent: str) -> None:
        """Check that the requested agent is not itself waiting for the answer.

        Raises:
            CircularRequest: it is, and both agents would wait until they time out.
        """
        if to_agent in self.waiting:
            raise CircularRequest(
                f"{to_agent!r} already waits for this answer ({' waits for '.join((*self.waiting, to_agent))}): "
                "use request_later(..., on_reply=), which does not wait, or send the data with the first request"
            )

    def to_header(self) -> dict[str, JSON]:
        """Return the value of the header."""
        header: dict[str, JSON] = {
            "waiting": list(self.waiting),
            "stream": self.stream,
            "on_reply": self.on_reply,
        }
        if self.keep:
            header["keep"] = True
        return header if self.deadline is None else {**header, "deadline": self.deadline.isoformat()}

    @classmethod
    def from_header(cls, header: Any) -> Self | None:
        """Return the reply-to of a message, or None if it has none.

        Raises:
            InvalidMessage: the header is damaged.
        """
        if header is None:
            return None
        fields: Mapping[str, Any] = header if isinstance(header, Mapping) else {"waiting": None}
        waiting, stream, on_reply = fields.get("waiting", []), fields.get("stream", False), fields.get("on_reply")
        deadline = _time(fields.get("deadline"))
        are_names = isinstance(waiting, list) and all(isinstance(name, str) for name in waiting)
        are_valid = are_names and isinstance(stream, bool) and isinstance(on_reply, str | None)
        if not are_valid or (deadline is None) != (fields.get("deadline") is None):
            raise InvalidMessage(f"the header {REPLY_TO_HEADER!r} is damaged: {header!r:.80}")
        keep = fields.get("keep") is True
        return cls(waiting=tuple(waiting), stream=stream, on_reply=on_reply, deadline=deadline, keep=keep)


def _time(value: Any) -> datetime | None:
    """Return an aware time, or None if the value is none."""
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo is not None else None
