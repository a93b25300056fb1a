"""A deadline for what waits on a database: a server that froze keeps its connections open and never answers.

Neither libpq nor psycopg2 gives up waiting for an answer, and a frozen server cannot end its own statements. So a
thread cuts the connection on which somebody waits too long, and the wait ends with an error.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds between two looks at the clock.
_LOOK_SECONDS = 0.25
#: Looks without anything to watch after which it sleeps until there is. To wake it for each statement would cost
#: more than the statement.
_LOOKS = 40


class Watchdog:
    """Cuts connections that are used for longer than they may be. One serves a whole process."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start anew, in a process that was just forked: threads do not survive that, and locks stay locked."""
        self._changed = threading.Condition()
        self._watched: dict[object, tuple[float, int]] = {}
        self._thread: threading.Thread | None = None
        self._asleep = False

    @contextmanager
    def watch(self, descriptor: int, seconds: float) -> Iterator[None]:
        """Cut this socket unless the block ends in time.

        Args:
            descriptor: file descriptor of a connected socket, which stays open during the block.
            seconds: how long the block may take.
        """
        key = object()
        with self._changed:
            self._watched[key] = (time.monotonic() + seconds, descriptor)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="waooaw-watchdog", daemon=True)
                self._thread.start()
            elif self._asleep:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._watched.pop(key, None)

    def _run(self) -> None:
        idle = 0
        while True:
            with self._changed:
                idle = 0 if self._watched else idle + 1
                self._asleep = idle > _LOOKS
                self._changed.wait(None if self._asleep else _LOOK_SECONDS)
                self._asleep = False
                now = time.monotonic()
                for key, (deadline, descriptor) in list(self._watched.items()):
                    if deadline < now:
                        del self._watched[key]
                        _cut(descriptor)


def _cut(descriptor: int) -> None:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the other side was faster, or the driver has closed it by itself
        return


watchdog = Watchdog()
os.register_at_fork(after_in_child=watchdog.forget)
