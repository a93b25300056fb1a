"""The parts of a stream that were sent, as the ledger records them with the answer."""

from __future__ import annotations

import hashlib
from typing import Any

from waooaw_celery.ledger.database.rows import canonical_json
from waooaw_celery.messages.validation import JSON


class SentParts:
    """The parts of one stream: their number and digest, and the parts themselves where they are kept.

    Args:
        max_kept: bytes of JSON up to which the parts are kept; 0: none is kept. A stream may be of any length, and
            all its parts might not fit into the memory of the worker.
    """

    def __init__(self, max_kept: int) -> None:
        self._count = 0
        self._digest = hashlib.sha256()
        self._room = max_kept
        self._parts: list[JSON] | None = [] if max_kept else None

    def add(self, part: JSON) -> None:
        """Add a part that was sent."""
        line = canonical_json(part).encode() + b"\n"
        self._count += 1
        self._digest.update(line)
        if self._parts is not None:
            self._room -= len(line)
            if self._room < 0:
                self._parts = None
            else:
                self._parts.append(part)

    def to_payload(self) -> dict[str, JSON]:
        """Return their number, the SHA-256 of their canonical JSON lines, and the parts where they are kept."""
        payload: dict[str, JSON] = {"count": self._count, "sha256": self._digest.hexdigest()}
        return payload if self._parts is None else {**payload, "parts": self._parts}


def sent_parts(app: Any) -> SentParts | None:
    """Return what takes the parts of a stream, or None where no answer is recorded.

    Args:
        app: the application, an AgentApp.
    """
    if not records_answers(app):
        return None
    return SentParts(app.packer.caps.max_body_bytes if app.settings.record_stream_parts else 0)


def records_answers(app: Any) -> bool:
    """Return whether the ledger records the answers of requests (``waooaw_record_answers``).

    Args:
        app: the application, an AgentApp.
    """
    return bool(app.settings.record_answers and app.components.has_ledger)
