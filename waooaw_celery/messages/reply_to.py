"""The header of a request that tells its worker who waits for the answer, and how the answer is to come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from waooaw_celery.errors import CircularRequest, InvalidMessage
from waooaw_celery.messages.validation import JSON

#: The Celery header of a request; the door alone sets it.
REPLY_TO_HEADER = "waooaw_reply_to"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyTo:
    """How the answer of a request comes.

    Attributes:
        waiting: the agents whose handlers do nothing else until they have it, the first caller first.
        stream: it comes in parts, and the time to live of the request does not bound it.
        on_reply: it comes as a message to this handler, such as ``orchestrator.status_came``, and nobody waits.
    """

    waiting: tuple[str, ...] = ()
    stream: bool = False
    on_reply: str | None = None

    def check(self, to_agent: str) -> None:
        """Check that whoever is asked does not wait for the answer itself.

        Raises:
            CircularRequest: it does, and both would wait until their time is over.
        """
        if to_agent in self.waiting:
            raise CircularRequest(
                f"{to_agent!r} waits for this answer already ({' waits for '.join((*self.waiting, to_agent))}): "
                "ask with request_later(..., on_reply=), which holds nobody up, or put what is needed into the "
                "first request"
            )

    def to_header(self) -> dict[str, JSON]:
        """Return what travels."""
        return {"waiting": list(self.waiting), "stream": self.stream, "on_reply": self.on_reply}

    @classmethod
    def from_header(cls, header: Any) -> Self | None:
        """Return the call that came with a message, or None when it is no request of ours.

        Raises:
            InvalidMessage: the header is damaged.
        """
        if header is None:
            return None
        said: Mapping[str, Any] = header if isinstance(header, Mapping) else {"waiting": None}
        waiting, stream, on_reply = said.get("waiting", []), said.get("stream", False), said.get("on_reply")
        names = isinstance(waiting, list) and all(isinstance(name, str) for name in waiting)
        if not names or not isinstance(stream, bool) or not isinstance(on_reply, str | None):
            raise InvalidMessage(f"the header {REPLY_TO_HEADER!r} is damaged: {header!r:.80}")
        return cls(waiting=tuple(waiting), stream=stream, on_reply=on_reply)
