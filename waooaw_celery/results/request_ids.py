"""The ids of one process's requests: they begin alike, so that one subscription covers the results of all."""

from __future__ import annotations

from waooaw_celery.messages.validation import NewId, new_id

#: Characters of an id that are the same in all of one process: 48 random bits, and the version of the UUID. The
#: rest has 74 random bits.
_SHARED = 15


class RequestIds:
    """Makes the ids of one process's requests.

    Attributes:
        start: How they begin.
    """

    def __init__(self) -> None:
        self.start = new_id()[:_SHARED]

    def next(self) -> NewId:
        """Return a new id: the text of a UUID of version 4."""
        return NewId(self.start + new_id()[_SHARED:])
