"""The names of the fleet's agents, which one source reads and others need."""

from __future__ import annotations

import threading
from collections.abc import Iterable

#: Seconds that a source waits, once, for the first list of names.
_WAIT_SECONDS = 1.0


class KnownAgents:
    """The names of the agents as they were last read; they stay known while the store does not answer.

    Args:
        names: names that are known without a store, from the settings.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = tuple(sorted(set(names)))
        self._were_read = threading.Event()
        self._has_waited = False

    def note(self, names: Iterable[str]) -> None:
        """Replace the names by those that were read."""
        self._names = tuple(sorted(set(names)))
        self._were_read.set()

    def names(self) -> tuple[str, ...]:
        """Return the names, sorted; the first call waits a moment for them."""
        if not self._has_waited:
            self._were_read.wait(_WAIT_SECONDS)
            self._has_waited = True
        return self._names
