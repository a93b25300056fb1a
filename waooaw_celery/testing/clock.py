"""The clock of a test: it runs as the real one does, and the test moves it forward."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from waooaw_celery.errors import ConfigurationError


class Clock:
    """The time of this process, for the package, for the handlers and for the test itself.

    ``time.time()`` and ``datetime.now()`` show it everywhere, by the library ``time-machine``.
    ``time.monotonic()`` stays real.

    Args:
        move: called with the time up to which everything that is due has to happen.

    Example:
        >>> agents_app.clock.advance(days=3)
    """

    def __init__(self, move: Callable[[datetime], None]) -> None:
        self._move = move
        self._travel: Any = None
        self._traveller: Any = None

    def now(self) -> datetime:
        """Return the time, aware UTC."""
        return datetime.now(UTC)

    def advance(
        self, *, days: float = 0.0, hours: float = 0.0, minutes: float = 0.0, seconds: float = 0.0
    ) -> None:
        """Let time pass: all that is due meanwhile happens, in the order in which it is due.

        Messages expire, retries and delayed messages are handled, workflows wake up, beat sends its tasks, the
        sweep and the purge run.

        Args:
            days, hours, minutes, seconds: how much time passes; together more than 0.

        Raises:
            ValueError: the time would stand still or go back.

        Example:
            >>> agents_app.clock.advance(hours=1, minutes=30)
        """
        passed = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        if passed <= timedelta(0):
            raise ValueError(f"the clock only goes forward: advance it by more than {passed}")
        self._move(self.now() + passed)

    def set(self, time: datetime) -> None:
        """Show a time, and do nothing else. The harness calls it between two things that are due.

        Args:
            time: an aware datetime; one that has passed changes nothing.
        """
        if time > self.now():
            self._traveller.move_to(time)

    def start(self) -> None:
        """Begin to move the time of this process.

        Raises:
            ConfigurationError: the library time-machine is not installed.
        """
        try:
            import time_machine
        except ImportError as error:
            raise ConfigurationError(
                "the test harness needs time-machine: pip install 'waooaw-celery[testing]'"
            ) from error
        self._travel = time_machine.travel(datetime.now(UTC), tick=True)
        self._traveller = self._travel.start()

    def stop(self) -> None:
        """Show the real time again."""
        if self._travel is not None:
            self._travel.stop()
        self._travel = self._traveller = None
