"""A deadline for database calls.

A frozen server keeps its connections open and never answers. It cannot end its own statements, and neither libpq
nor psycopg2 limits the wait for an answer. So a thread shuts down the socket of a call that takes too long, and
the call fails.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds between two checks of the deadlines.
_CHECK_SECONDS = 0.25
#: Checks without a call to watch after which the thread sleeps until the next call. To wake it for each statement
#: would cost more than the statement.
_IDLE_CHECKS = 40


class Watchdog:
    """Shuts down sockets whose calls exceed their deadlines. A process has one watchdog."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Reset the state in a forked child: threads do not survive a fork, and locks may stay locked."""
        self._condition = threading.Condition()
        self._watched: dict[object, tuple[float, int]] = {}
        self._thread: threading.Thread | None = None
        self._sleeping = False

    @contextmanager
    def watch(self, descriptor: int, seconds: float) -> Iterator[None]:
        """Shut down a socket unless the block ends in time.

        Args:
            descriptor: the file descriptor of a connected socket that stays open during the block.
            seconds: how long the block may take.
        """
        key = object()
        with self._condition:
            self._watched[key] = (time.monotonic() + seconds, descriptor)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="waooaw-watchdog", daemon=True)
                self._thread.start()
            elif self._sleeping:
                self._condition.notify()
        try:
            yield
        finally:
            with self._condition:
                self._watched.pop(key, None)

    def _run(self) -> None:
        idle_checks = 0
        while True:
            with self._condition:
                idle_checks = 0 if self._watched else idle_checks + 1
                self._sleeping = idle_checks > _IDLE_CHECKS
                self._condition.wait(None if self._sleeping else _CHECK_SECONDS)
                self._sleeping = False
                now = time.monotonic()
                for key, (deadline, descriptor) in list(self._watched.items()):
                    if deadline < now:
                        del self._watched[key]
                        _shut_down(descriptor)


def _shut_down(descriptor: int) -> None:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the server or the driver has closed it already
        return


watchdog = Watchdog()
os.register_at_fork(after_in_child=watchdog.forget)
