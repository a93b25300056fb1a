"""The results that a process waits for, and those that are to be forgotten in the result backend."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from celery.result import AsyncResult
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

#: Seconds until a result is first fetched, in case its notification was lost. Each further pause is twice as long.
FETCH_AFTER_SECONDS = 1.0
#: What the result backends raise if they do not answer.
BACKEND_ERRORS = (RedisError, OperationalError, OSError, RuntimeError)


class ResultMessage(NamedTuple):
    """The result backend's record of a request that has ended."""

    state: str  #: Celery's name for how it ended
    value: Any  #: the result, or the exception
    traceback: str | None


@dataclass(slots=True)
class PendingResult:
    """A request whose result has not arrived yet."""

    result: AsyncResult[Any]
    on_chunk: Callable[[Any], None] | None
    future: Future[ResultMessage] = field(default_factory=Future)
    #: Seconds until it is fetched the next time, and when that is by the monotonic clock.
    fetch_after: float = FETCH_AFTER_SECONDS
    fetch_at: float = field(default_factory=lambda: time.monotonic() + FETCH_AFTER_SECONDS)
    #: When its result was seen in the backend, and left there because chunks may still arrive.
    seen_at: float | None = None


class PendingResults:
    """The pending results by message id. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id: dict[str, PendingResult] = {}
        self._to_forget: deque[AsyncResult[Any]] = deque()

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, message_id: str, pending: PendingResult) -> None:
        """Add a request."""
        with self._lock:
            self._by_id[message_id] = pending

    def get(self, message_id: str) -> PendingResult | None:
        """Return a request, or None if no result is pending."""
        return self._by_id.get(message_id)

    def drop(self, message_id: str) -> bool:
        """Remove a request whose result is no longer wanted, and return whether there was one."""
        with self._lock:
            pending = self._by_id.pop(message_id, None)
            if pending is not None:
                self._to_forget.append(pending.result)
        return pending is not None

    def due(self, before: float) -> list[tuple[str, PendingResult]]:
        """Return the requests whose results are to be fetched before a time of the monotonic clock."""
        with self._lock:
            return [(id_, pending) for id_, pending in self._by_id.items() if pending.fetch_at <= before]

    def fetch_all_now(self) -> None:
        """Make all requests due."""
        with self._lock:
            for pending in self._by_id.values():
                pending.fetch_at = 0.0

    def resolve(self, result: AsyncResult[Any]) -> None:
        """End the request of a result: its future returns the result."""
        with self._lock:
            pending = self._by_id.pop(str(result.id), None)
        if pending is None:
            return
        self._to_forget.append(result)
        try:
            value: Any = result.result
            message = ResultMessage(str(result.state), value, result.traceback and str(result.traceback))
        except Exception as error:  # noqa: BLE001 - a damaged result: its future raises the error
            _set_exception(pending.future, error)
        else:
            if pending.future.set_running_or_notify_cancel():
                pending.future.set_result(message)

    def fail(self, error: BaseException, *message_ids: str) -> None:
        """End these requests, or all: their futures raise an error."""
        with self._lock:
            ids = message_ids or tuple(self._by_id)
            failed = [self._by_id.pop(id_) for id_ in ids if id_ in self._by_id]
        for pending in failed:
            self._to_forget.append(pending.result)
            _set_exception(pending.future, error)

    def forget_ended(self) -> None:
        """Remove the results of ended requests from the backend."""
        while self._to_forget:
            result = self._to_forget.popleft()
            try:
                result.forget()
            except BACKEND_ERRORS as error:  # harmless: the result expires by itself
                logger.warning(
                    "the result of request %s was not forgotten: %s",
                    result.id,
                    error,
                    extra={"action": "result_not_removed"},
                )

    def clear_if_idle(self, event: threading.Event) -> None:
        """Clear an event if there is nothing to wait for and nothing to forget."""
        with self._lock:
            if not self._by_id and not self._to_forget:
                event.clear()


def _set_exception(future: Future[ResultMessage], error: BaseException) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
