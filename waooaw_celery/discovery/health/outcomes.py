"""The outcomes of the last minute, by agent, in a worker."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

#: Seconds that count, and the most outcomes of an agent that are kept.
WINDOW_SECONDS, MAX_KEPT = 60.0, 2000


class Outcome(NamedTuple):
    """How one message ended.

    Attributes:
        at: when, by the monotonic clock.
        seconds: how long it was handled.
        failed: whether it failed.
    """

    at: float
    seconds: float
    failed: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """The outcomes of the last minute.

    Attributes:
        handled: how many messages ended.
        failed: how many of them failed.
        median: the median of their durations, in seconds; None: none ended.
        p95: the 95th percentile of them.
        waited: the longest time that a message waited in the queue, in seconds; None: none was begun.
    """

    handled: int = 0
    failed: int = 0
    median: float | None = None
    p95: float | None = None
    waited: float | None = None


class Outcomes:
    """The outcomes of the last minute, by agent. Any thread may add one."""

    def __init__(self) -> None:
        self._ended: dict[str, deque[Outcome]] = {}
        self._waited: dict[str, deque[tuple[float, float]]] = {}

    def note(self, agent: str, seconds: float, *, failed: bool, waited: float | None = None) -> None:
        """Note how a message ended.

        Args:
            agent: the agent that handled it.
            seconds: how long it was handled.
            failed: whether it failed.
            waited: how long it waited in the queue, in seconds; None: not known.
        """
        ended = self._ended.get(agent)
        if ended is None:
            ended = self._ended.setdefault(agent, deque(maxlen=MAX_KEPT))
        now = time.monotonic()
        ended.append(Outcome(now, seconds, failed))
        if waited is not None:
            kept = self._waited.get(agent)
            if kept is None:
                kept = self._waited.setdefault(agent, deque(maxlen=MAX_KEPT))
            kept.append((now, waited))

    def summary(self, agent: str) -> Summary:
        """Return the outcomes of the last minute of an agent."""
        since = time.monotonic() - WINDOW_SECONDS
        found = [each for each in tuple(self._ended.get(agent, ())) if each.at >= since]
        waited = [seconds for at, seconds in tuple(self._waited.get(agent, ())) if at >= since]
        if not found:
            return Summary(waited=max(waited, default=None))
        durations = sorted(each.seconds for each in found)
        return Summary(
            len(found),
            sum(each.failed for each in found),
            durations[len(durations) // 2],
            durations[min(int(len(durations) * 0.95), len(durations) - 1)],
            max(waited, default=None),
        )
