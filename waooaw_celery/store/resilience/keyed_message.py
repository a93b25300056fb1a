"""Messages with keys, and what is decided about them, on brokers that cannot order messages by key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import NamedTuple


class Turn(Enum):
    """What is to be done with a message."""

    BEGIN = auto()  #: it is handled now
    WAIT = auto()  #: others of its key come before it
    DROP = auto()  #: it is not handled
    ENDED = auto()  #: it has ended meanwhile
    REGISTER = auto()  #: its place was lost, and it has to be noted again


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedMessage:
    """A message that a worker has, and the rule of its key.

    Attributes:
        message_id: its id.
        key: a digest of its key.
        rank: the rank of its priority.
        most: how many messages of the key are handled at once.
        on_busy: ``wait``, ``drop`` or ``cancel``: what becomes of it while its key is busy.
        due: when it was due, if it was delayed.
        needs_room: whether a handler begins with it at once; otherwise it waits for the pause of a retry.
    """

    message_id: str
    key: str
    rank: int
    most: int = 1
    on_busy: str = "wait"
    due: datetime | None = None
    needs_room: bool = True


class Place(NamedTuple):
    """The place of a message in its key.

    Attributes:
        at: the time by which it is ordered.
        is_known: whether it was noted before.
        is_begun: whether it has begun before: it is tried again, or delivered again.
    """

    at: datetime
    is_known: bool
    is_begun: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done with a message, and which running ones are to be cancelled for it."""

    turn: Turn
    cancelled: Sequence[str] = ()
