"""The requests to agents that this process has counted and not reported to the store yet."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

from waooaw_celery.store.resilience.breaker_rules import PARTS, Counted


class UnsentCounts:
    """Counts failed and answered requests by agent and part of the window. Safe for several threads.

    Args:
        part_seconds: the length of a part of the window.
    """

    def __init__(self, part_seconds: float) -> None:
        self._part_seconds = part_seconds
        self._begin_anew()

    def add(self, agent: str, *, failed: bool) -> None:
        """Count a request that has ended now."""
        if self._pid != os.getpid():
            self._begin_anew()
        part = self._part()
        with self._lock:
            parts = self._counts.setdefault(agent, {})
            count = parts.get(part)
            if count is None:
                count = parts[part] = [0, 0]
                for old in [each for each in parts if each <= part - PARTS]:
                    del parts[old]
            count[not failed] += 1
            if failed:
                self._failing.add(agent)

    def failing(self) -> list[str]:
        """Return the agents with failures that were not reported."""
        with self._lock:
            return sorted(self._failing)

    def take(self, agent: str) -> list[Counted]:
        """Return what was counted for an agent, and forget it."""
        now = self._part()
        with self._lock:
            self._failing.discard(agent)
            parts = self._counts.pop(agent, {})
        return [Counted(now - part, *count) for part, count in sorted(parts.items()) if now - part < PARTS]

    def give_back(self, agent: str, counted: Sequence[Counted]) -> None:
        """Take back what could not be reported."""
        now = self._part()
        with self._lock:
            parts = self._counts.setdefault(agent, {})
            for parts_ago, failures, successes in counted:
                count = parts.setdefault(now - parts_ago, [0, 0])
                count[0] += failures
                count[1] += successes
                if failures:
                    self._failing.add(agent)

    def _part(self) -> int:
        return int(time.monotonic() / self._part_seconds)

    def _begin_anew(self) -> None:
        """Forget everything, also in a forked process: its parent reports what it has counted."""
        self._pid = os.getpid()
        self._lock = threading.Lock()  # a thread of the parent may have held it
        #: By agent and the number of a part: failed and answered requests.
        self._counts: dict[str, dict[int, list[int]]] = {}
        self._failing: set[str] = set()
