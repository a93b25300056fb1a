"""What a store of large payloads does, and the keys under which it keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

#: How long a stored payload without a message is kept: its message may be recorded or published late.
ORPHAN_GRACE = timedelta(days=1)
_WRITTEN_AT = "%Y%m%dT%H%M%S"


class NewObject(NamedTuple):
    """A payload to store.

    Attributes:
        key: its key, from ``new_key``.
        data: its bytes.
        message_ids: the messages that carry its reference.
    """

    key: str
    data: bytes
    message_ids: Sequence[str]


class Purged(NamedTuple):
    """What a purge removed from a store.

    Attributes:
        objects: how many payloads whose messages were purged or erased, or whose time is over.
        orphans: how many payloads that never had a message: their sender ended between store and record.
        size: their size in bytes.
    """

    objects: int = 0
    orphans: int = 0
    size: int = 0


class ObjectStore(Protocol):
    """Keeps the bytes of large payloads. Every method raises ReferenceStoreUnavailable if it does not answer."""

    def put(self, objects: Sequence[NewObject], session: Any = None) -> None:
        """Store payloads.

        Args:
            objects: the payloads.
            session: the SQLAlchemy Session whose transaction records their messages; None: there is none.
        """

    def share(self, key: str, message_ids: Sequence[str], session: Any = None) -> None:
        """Note that more messages carry the reference to a payload.

        Args:
            key: its key.
            message_ids: the messages.
            session: as for ``put``.

        Raises:
            PayloadMissing: it is not there any more.
        """

    def get(self, key: str) -> bytes:
        """Return a payload.

        Raises:
            PayloadMissing: it is not there.
        """

    def purge(self) -> Purged:
        """Remove the payloads that no message needs any more, and those that never got one."""


def new_key(keep_until: datetime) -> str:
    """Return a new key. It names the day until which the payload is kept, and the time of now.

    Args:
        keep_until: until when a message needs it.
    """
    # The next day begins after any time of this one.
    kept = (min(keep_until, datetime(9000, 1, 1, tzinfo=UTC)).astimezone(UTC) + timedelta(days=1)).date()
    return f"{kept.isoformat()}/{datetime.now(UTC).strftime(_WRITTEN_AT)}-{uuid4().hex}"


def kept_until(key: str) -> date:
    """Return the day until which a payload is kept.

    Raises:
        ValueError: this is no key.
    """
    return date.fromisoformat(key.partition("/")[0])


def stored_at(key: str) -> datetime:
    """Return when a payload was stored.

    Raises:
        ValueError: this is no key.
    """
    written = key.partition("/")[2].partition("-")[0]
    return datetime.strptime(written, _WRITTEN_AT).replace(tzinfo=UTC)
