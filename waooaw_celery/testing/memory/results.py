"""Results in memory: a backend for Celery, and the collector that gives each result to its caller."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from celery.backends.base import KeyValueStoreBackend
from celery.states import READY_STATES

from waooaw_celery.messages.validation import NewId
from waooaw_celery.results.backend import _PackedResults
from waooaw_celery.results.pending import CHUNK, PendingResult, PendingResults, ResultMessage
from waooaw_celery.results.request_ids import RequestIds

#: How Celery names the backend in the setting ``result_backend``.
BACKEND = f"{__name__}:MemoryBackend"


class Worker(Protocol):
    """Handles messages while somebody waits for an answer."""

    def handle_until(self, done: Callable[[], bool], seconds: float | None) -> bool:
        """Handle messages in this thread until something is done; let time pass when nothing else is left."""

    def handle_in_background(self, done: Callable[[], bool]) -> None:
        """Handle messages in another thread until something is done."""


class MemoryResults:
    """The stored results of the applications of one harness.

    Attributes:
        stored: the encoded results, by key.
        lost: the ids of requests whose results are not stored: the answer is lost on its way.
        listeners: called with the id of a task and its decoded result.
        worker: handles messages while somebody waits for a result.
    """

    def __init__(self) -> None:
        self.stored: dict[Any, Any] = {}
        self.lost: set[str] = set()
        self.listeners: list[Callable[[str, dict[str, Any]], None]] = []
        self.worker: Worker | None = None


_results: WeakKeyDictionary[Any, MemoryResults] = WeakKeyDictionary()


def keep_results(app: Any, results: MemoryResults | None) -> None:
    """Have the backends of an application store results here; None: they store nothing any more."""
    if results is None:
        _results.pop(app, None)
    else:
        _results[app] = results


class MemoryBackend(_PackedResults, KeyValueStoreBackend):
    """Celery's result backend in memory."""

    persistent = True

    @property
    def results(self) -> MemoryResults:
        """The stored results of the application."""
        return _results[self.app]

    def get(self, key: Any) -> Any:
        """Return what is stored under a key; None: nothing."""
        return self.results.stored.get(key)

    def mget(self, keys: Any) -> list[Any]:
        """Return what is stored under some keys."""
        return [self.results.stored.get(key) for key in keys]

    def set(self, key: Any, value: Any) -> None:
        """Store a value under a key."""
        self.results.stored[key] = value

    def delete(self, key: Any) -> None:
        """Remove a key."""
        self.results.stored.pop(key, None)

    def wait_for(  # type: ignore[override]
        self, task_id: Any, timeout: float | None = None, **options: Any
    ) -> Any:
        """Wait for a result as Celery does, and handle messages meanwhile."""
        if self.results.worker is not None:
            self.results.worker.handle_until(
                lambda: self.get_task_meta(task_id)["status"] in READY_STATES, timeout
            )
        return super().wait_for(task_id, timeout=0.01 if timeout is None else timeout, **options)

    def _store_result(self, task_id: Any, result: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        if str(task_id) in self.results.lost:
            return result
        stored: Any = super()._store_result(task_id, result, state, *args, **kwargs)  # type: ignore[misc]
        read: Any = self._get_task_meta_for  # type: ignore[attr-defined]  # missing in its stubs
        meta = read(task_id)
        for listener in self.results.listeners:
            listener(str(task_id), meta)
        return stored


class PumpingFuture(Future[ResultMessage]):
    """The result of a request: whoever waits for it has the messages handled meanwhile.

    Args:
        worker: handles messages.
    """

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker

    def result(self, timeout: float | None = None) -> ResultMessage:
        """Return the result; see ``Future.result``."""
        self._worker.handle_until(self.done, timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error; see ``Future.exception``."""
        self._worker.handle_until(self.done, timeout)
        return super().exception(0)

    def add_done_callback(self, fn: Callable[[Future[ResultMessage]], object]) -> None:
        """Call a function when the result is there. Its caller waits in a way of its own, such as ``await``."""
        super().add_done_callback(fn)
        if not self.done():
            self._worker.handle_in_background(self.done)


class MemoryCollector:
    """Gives each result to its caller, as the ``ResultCollector`` does, and without a thread.

    Args:
        app: the application, an AgentApp.
        results: where its results are stored.
        worker: handles messages while a caller waits.
    """

    reply_to = None

    def __init__(self, app: Any, results: MemoryResults, worker: Worker) -> None:
        self._app, self._worker = app, worker
        self._pending, self._ids = PendingResults(), RequestIds()
        results.listeners.append(self._take)

    def new_id(self) -> NewId:
        """Return an id for a request."""
        return self._ids.next()

    def expect(
        self,
        message_id: str,
        agent: str,
        on_chunk: Callable[[Any], None] | None = None,
        deadline: float | None = None,
    ) -> Future[ResultMessage]:
        """Start to wait for the result of a request; see ``ResultCollector.expect``."""
        # By the clock of the test, which passes faster than the monotonic clock.
        until = float("inf") if deadline is None else time.time() + deadline - time.monotonic()
        pending = PendingResult(message_id, on_chunk, until, PumpingFuture(self._worker))
        self._pending.add(pending)
        return pending.future

    def drop(self, message_id: str) -> None:
        """Stop waiting for a result."""
        self._pending.drop(message_id)
        self._pending.take_ended()

    def revoke(self, message_id: str, reason: str) -> None:
        """Tell the caller of a request that there will be no answer."""
        self._app.backend.mark_as_revoked(message_id, reason)

    def __len__(self) -> int:
        return len(self._pending)

    def close(self) -> None:
        """Forget all requests."""
        for pending in self._pending.all():
            self.drop(pending.message_id)

    def _take(self, message_id: str, meta: dict[str, Any]) -> None:
        pending = self._pending.get(message_id)
        if pending is None or time.time() > pending.deadline:  # its caller no longer waits
            return
        if meta["status"] == CHUNK:
            self._pending.pass_chunk(pending, meta["result"])
        elif meta["status"] in READY_STATES:
            self._pending.resolve(message_id, meta)
            self._pending.take_ended()
