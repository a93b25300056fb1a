"""The results that a process waits for, and those that are to be forgotten in the result backend."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from celery.result import AsyncResult
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Seconds until a result is first fetched, in case its notification was lost. Each further pause is twice as long.
FETCH_AFTER_SECONDS = 1.0
#: Seconds before the deadline of a request at which its result is fetched once more.
LAST_FETCH_SECONDS = 0.4
#: What the result backends raise if they do not answer.
BACKEND_ERRORS = (RedisError, OperationalError, OSError, RuntimeError)
#: The state of a request while its answer arrives in chunks: one of Celery's custom states.
CHUNK = "CHUNK"


class ResultMessage(NamedTuple):
    """The result backend's record of a request that has ended."""

    state: str  #: Celery's name for how it ended
    value: Any  #: the result, or the exception
    traceback: str | None

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> ResultMessage:
        """Return the record that a backend has decoded."""
        traceback = meta.get("traceback")
        return cls(str(meta["status"]), meta["result"], traceback and str(traceback))


@dataclass(slots=True)
class PendingResult:
    """A request whose result has not arrived yet.

    Attributes:
        message_id: The id of the request.
        on_chunk: Called with each chunk of a streamed answer; None: the answer is one result.
        deadline: When its caller stops waiting, by the monotonic clock.
        future: The result.
        fetch_after: Seconds until it is fetched the next time.
        fetch_at: When that is, by the monotonic clock.
        seen_at: When its result was seen in the backend, and left there because a notice of it may still arrive.
        celery_result: What Celery's own consumer completes, where that receives the results.
    """

    message_id: str
    on_chunk: Callable[[Any], None] | None = None
    deadline: float = float("inf")
    future: Future[ResultMessage] = field(default_factory=Future)
    fetch_after: float = FETCH_AFTER_SECONDS
    fetch_at: float = 0.0
    seen_at: float | None = None
    celery_result: AsyncResult[Any] | None = None

    def __post_init__(self) -> None:
        self._set_fetch_at(time.monotonic())

    def plan_next_fetch(self, now: float) -> None:
        """Note that the result is being fetched: the next pause is twice as long.

        Args:
            now: The time by the monotonic clock.
        """
        self.fetch_after *= 2
        self._set_fetch_at(now)

    def _set_fetch_at(self, now: float) -> None:
        self.fetch_at = now + self.fetch_after
        last = self.deadline - LAST_FETCH_SECONDS
        if now < last < self.fetch_at:
            self.fetch_at = last

    def give(self, message: ResultMessage) -> None:
        """Give the result to whoever waits for it."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(message)

    def fail(self, error: BaseException) -> None:
        """Raise an error where the result is awaited."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class PendingResults:
    """The pending results by message id. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id: dict[str, PendingResult] = {}
        self._ended: deque[PendingResult] = deque()

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, pending: PendingResult) -> None:
        """Add a request."""
        with self._lock:
            self._by_id[pending.message_id] = pending

    def get(self, message_id: str) -> PendingResult | None:
        """Return a request, or None if no result is pending."""
        return self._by_id.get(message_id)

    def all(self) -> list[PendingResult]:
        """Return all requests."""
        with self._lock:
            return list(self._by_id.values())

    def drop(self, message_id: str) -> bool:
        """Remove a request whose result is no longer wanted, and return whether there was one."""
        return self._pop(message_id) is not None

    def due(self, before: float) -> list[PendingResult]:
        """Return the requests whose results are to be fetched before a time of the monotonic clock."""
        with self._lock:
            return [pending for pending in self._by_id.values() if pending.fetch_at <= before]

    def fetch_all_now(self) -> None:
        """Make all requests due."""
        with self._lock:
            for pending in self._by_id.values():
                pending.fetch_at = 0.0

    def resolve(self, message_id: str, meta: Mapping[str, Any]) -> None:
        """End a request: its future returns the result.

        Args:
            message_id: The id of the request.
            meta: What the result backend stores for it, decoded.
        """
        pending = self._pop(message_id)
        if pending is None:
            return
        try:
            message = ResultMessage.of(meta)
        except Exception as error:  # noqa: BLE001 - a damaged result: its future raises the error
            pending.fail(error)
        else:
            pending.give(message)

    def pass_chunk(self, pending: PendingResult, chunk: Any) -> None:
        """Give a chunk of a streamed answer to its caller. If that raises, only this request fails.

        Args:
            pending: The request.
            chunk: The chunk.
        """
        if pending.on_chunk is None:
            return
        try:
            pending.on_chunk(chunk)
        except Exception as error:  # in the thread that receives the answers of all requests
            logger.exception(
                "a part of the answer to request %s could not be passed on; the request fails",
                pending.message_id,
                extra={"action": "chunk_not_passed", "message_id": pending.message_id},
            )
            self.fail(error, pending.message_id)

    def fail(self, error: BaseException, *message_ids: str) -> None:
        """End these requests, or all: their futures raise an error."""
        with self._lock:
            ids = message_ids or tuple(self._by_id)
        for message_id in ids:
            if (pending := self._pop(message_id)) is not None:
                pending.fail(error)

    def take_ended(self) -> list[PendingResult]:
        """Take the requests that have ended since the last call. Their results are to be removed."""
        ended: list[PendingResult] = []
        while self._ended:  # only one thread takes
            ended.append(self._ended.popleft())
        return ended

    @property
    def ended_count(self) -> int:
        """How many requests have ended whose results are to be removed."""
        return len(self._ended)

    def clear_if_idle(self, event: threading.Event) -> None:
        """Clear an event if there is nothing to wait for and nothing to forget."""
        with self._lock:
            if not self._by_id and not self._ended:
                event.clear()

    def _pop(self, message_id: str) -> PendingResult | None:
        with self._lock:
            pending = self._by_id.pop(message_id, None)
            if pending is not None:
                self._ended.append(pending)
            return pending
