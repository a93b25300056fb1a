"""A value that all processes share, as this process has read it: at most about a second old."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

T = TypeVar("T")

#: Seconds for which a value is used, and for which a store that did not answer is not asked again.
CACHE_SECONDS, FAILURE_SECONDS = 1.0, 5.0
#: The age of a value in seconds from which a caller waits for the store, and how long it waits.
IDLE_SECONDS, WAIT_SECONDS = 3.0, 0.5


class CachedRead(Generic[T]):
    """A shared value that a thread reads again while it is used, so that its users cost no round trip.

    While the store does not answer, the last known value applies.

    Args:
        read: reads the value from the store.
        unknown: the value before the first read succeeds.
        what: what the value is, for the log.
        name: name of the thread.
    """

    def __init__(self, read: Callable[[], T], unknown: T, what: str, name: str) -> None:
        self._read, self._what, self._name = read, what, name
        self._value = unknown
        self._read_at = self._read_again_at = -IDLE_SECONDS
        self._has_read = False
        self._version = 0
        self._reading: threading.Thread | None = None
        #: Whether the store did not answer when it was asked last.
        self.is_away = False

    @property
    def last(self) -> T:
        """The value as it was read last."""
        return self._value

    def get(self) -> T:
        """Return the value. The first call waits for the store; later ones only after a pause in its use."""
        now = time.monotonic()
        if now >= self._read_again_at:
            self._read_again_at = now + CACHE_SECONDS  # one thread reads; meanwhile the others use what is known
            if not self._has_read:
                self._has_read = True
                self._refresh()
            else:
                self._refresh_in_thread(WAIT_SECONDS if now - self._read_at > IDLE_SECONDS else 0.0)
        return self._value

    def replace(self, value: T) -> None:
        """Change the value as this process knows it. A read that has begun before does not undo that."""
        self._version += 1
        self._value = value

    def note_failure(self, error: StoreUnavailable) -> None:
        """Ask the store less often, because it does not answer; log the first such error."""
        self._read_again_at = time.monotonic() + FAILURE_SECONDS
        if not self.is_away:
            logger.warning(
                "cannot exchange %s, so what was read last applies: %s",
                self._what,
                error,
                extra={"action": "shared_state_not_read"},
            )
        self.is_away = True

    def _refresh_in_thread(self, wait: float) -> None:
        if self._reading is not None and self._reading.is_alive():  # the store does not answer
            return
        self._reading = threading.Thread(target=self._refresh, name=self._name, daemon=True)
        try:
            self._reading.start()
            self._reading.join(wait)
        except RuntimeError:  # there are too many threads, or the interpreter is shutting down
            self._reading = None
            self._refresh()

    def _refresh(self) -> None:
        began, version = time.monotonic(), self._version
        try:
            value = self._read()
        except StoreUnavailable as error:
            self.note_failure(error)
        except Exception:
            self._read_again_at = time.monotonic() + FAILURE_SECONDS
            logger.exception("reading %s failed", self._what, extra={"action": "shared_state_failed"})
        else:
            if self.is_away:
                logger.warning("%s are exchanged again", self._what, extra={"action": "shared_state_back"})
            self.is_away = False
            self._read_at, self._read_again_at = began, began + CACHE_SECONDS
            if version == self._version:
                self._value = value
            else:  # it was changed while it was read
                self._read_again_at = 0.0
