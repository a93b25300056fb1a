"""The timers of the worker in this process: they are due by the clock of the test."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kombu.asynchronous.timer import Entry


class Timers:
    """What Celery's consumer has its timer do later. Its methods have the names of Celery's ``Timer``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._entries: list[tuple[float, int, Entry]] = []

    def call_at(
        self,
        eta: float,
        fun: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> Entry:
        """Call a function at a time of the monotonic clock, which Celery computes from the time of day."""
        return self.call_after(eta - time.monotonic(), fun, args, kwargs)

    def call_after(
        self,
        secs: float,
        fun: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> Entry:
        """Call a function after some seconds."""
        entry = Entry(fun, list(args), dict(kwargs or {}))
        with self._lock:
            heapq.heappush(self._entries, (time.time() + secs, next(self._numbers), entry))
        return entry

    def next_due(self) -> float | None:
        """Return when the next function is due, in seconds since 1970; None: there is none."""
        with self._lock:
            while self._entries and self._entries[0][2].canceled:
                heapq.heappop(self._entries)
            return self._entries[0][0] if self._entries else None

    def fire(self) -> bool:
        """Call the functions that are due, and return whether there was one."""
        fired = False
        while True:
            with self._lock:
                if not self._entries or self._entries[0][0] > time.time():
                    return fired
                entry = heapq.heappop(self._entries)[2]
            if not entry.canceled:
                fired = True
                entry()
