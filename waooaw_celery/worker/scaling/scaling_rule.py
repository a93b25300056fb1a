"""The rule of the autoscaler: how large a worker's pool should be, by what waits and for how long."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits for a worker.

    Attributes:
        waiting: its share of the messages in its queues.
        seconds: for how long they have waited.
    """

    waiting: int
    seconds: float


def recommended_size(size: int, held: int, backlog: Backlog, age: float) -> int:
    """Return how large a pool should be.

    It gets one place for each message that it holds and, if more messages wait than it has places or if they have
    waited for too long, one for each that waits. A short wait for few messages adds none: the pool clears them
    sooner than a process starts.

    Args:
        size: how large it is.
        held: how many messages it holds.
        backlog: what waits.
        age: seconds that messages may wait.

    Example:
        >>> recommended_size(2, held=2, backlog=Backlog(waiting=5, seconds=0.1), age=1.0)
        7
        >>> recommended_size(2, held=2, backlog=Backlog(waiting=1, seconds=0.1), age=1.0)
        2
    """
    if backlog.waiting and (backlog.waiting > size or backlog.seconds >= age):
        return held + backlog.waiting
    return held


class Recommendations:
    """The recommended sizes of the last seconds. The pool shrinks to the highest of them, and so not too early.

    Args:
        seconds: how long each of them counts.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._sizes: deque[tuple[float, int]] = deque()

    def highest(self, now: float, size: int) -> int:
        """Add a recommended size, and return the highest of the last seconds.

        Args:
            now: the time in seconds.
            size: the recommended size.
        """
        while self._sizes and self._sizes[0][0] < now - self._seconds:
            self._sizes.popleft()
        while self._sizes and self._sizes[-1][1] <= size:  # this one counts for longer
            self._sizes.pop()
        self._sizes.append((now, size))
        return self._sizes[0][1]
