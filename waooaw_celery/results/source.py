"""Where the result collector receives results: what is the same on each result backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.wording import counted
from waooaw_celery.results.pending import PendingResult

logger = get_logger(__name__)

#: Seconds between two rounds of the thread's other work. A result that arrives is taken at once.
ROUND_SECONDS = 0.1
#: Seconds after which a result that was seen is taken even if messages never stopped arriving.
CHUNKS_SECONDS = 10.0


class ResultSource(Protocol):
    """Receives the results of one process's requests. The collector's thread calls all except ``expect``.

    Attributes:
        backend: The result backend of that thread.
        reply_to: The queue for results, on a backend that sends them as messages; None on one that stores them.
    """

    backend: Any

    @property
    def reply_to(self) -> str | None: ...

    def open(self) -> None:
        """Be ready to receive.

        Raises:
            BACKEND_ERRORS: The backend does not answer.
        """

    def expect(self, pending: PendingResult) -> None:
        """Add a request, and prepare for its result; called in its caller's thread, before it is published.

        Raises:
            BACKEND_ERRORS: The backend does not answer.
        """

    def receive(self, ends: Callable[[], bool]) -> None:
        """Receive results until none is pending and nothing is to be removed.

        Args:
            ends: Whether to return at once.

        Raises:
            BACKEND_ERRORS: The backend does not answer.
        """

    def fetch_due(self) -> None:
        """Fetch results without a notification: it was lost with a connection, or the backend sends none."""

    def forget(self, ended: Sequence[PendingResult]) -> None:
        """Remove the results of requests from the backend. An outage is logged: they expire by themselves."""

    def close(self) -> None:
        """Close the connections."""


def log_not_removed(count: int, error: BaseException) -> None:
    """Log that results of ended requests could not be removed."""
    logger.warning(
        "%s of ended requests stay in the result backend until they expire: %s",
        counted(count, "result"),
        error,
        extra={"action": "result_not_removed"},
    )
