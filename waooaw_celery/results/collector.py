"""The result collector: one thread that receives the results of all requests that a process waits for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from celery import Celery
from celery.backends import redis

from waooaw_celery.errors import BackendUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import NewId
from waooaw_celery.results.consumed import ConsumedResults
from waooaw_celery.results.pending import BACKEND_ERRORS, PendingResult, PendingResults, ResultMessage
from waooaw_celery.results.request_ids import RequestIds
from waooaw_celery.results.source import ResultSource
from waooaw_celery.results.subscribed import SubscribedResults

logger = get_logger(__name__)

#: Seconds that the thread has to start, and to end.
_START_SECONDS = 10.0
_END_SECONDS = 5.0
#: Lets one thread of a forked process begin anew.
_fork_lock = threading.Lock()


def _renew_fork_lock() -> None:
    global _fork_lock
    _fork_lock = threading.Lock()  # a thread of the parent may have held it


os.register_at_fork(after_in_child=_renew_fork_lock)


class ResultCollector:
    """Receives the results of this process's requests, gives each to its caller, and removes it from the backend.

    The thread starts with the first request. Safe for several threads, and for use after a fork.

    Args:
        app: The application whose result backend carries the results.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._reset()

    def _reset_after_fork(self) -> None:
        """Begin anew in a process that was forked: neither the thread nor the connections are its own."""
        if self._pid != os.getpid():
            with _fork_lock:
                if self._pid != os.getpid():
                    self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._pending = PendingResults()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._has_work = threading.Event()
        self._closed = False
        self._start_error: BaseException | None = None
        self._source: ResultSource | None = None
        self._ids = RequestIds()
        self._pid = os.getpid()  # last: other threads take it for a sign that all is new

    @property
    def reply_to(self) -> str | None:
        """The queue for results, on a result backend that sends them as messages; None on one that stores them."""
        return None if self._source is None else self._source.reply_to

    def new_id(self) -> NewId:
        """Return an id for a request of this process."""
        self._reset_after_fork()
        return self._ids.next()

    def expect(
        self,
        message_id: str,
        agent: str,
        on_chunk: Callable[[Any], None] | None = None,
        deadline: float | None = None,
    ) -> Future[ResultMessage]:
        """Start to wait for the result of a request. Call this before you publish the request.

        Args:
            message_id: The id of the request, best from ``new_id``.
            agent: The agent that is asked, for error messages.
            on_chunk: Called with each chunk of a streamed answer, in the collector's thread.
            deadline: When the caller stops waiting, by the monotonic clock; None: that is not known.

        Returns:
            A future of the result. It raises what the result backend raised if the result cannot be received.

        Raises:
            BackendUnavailable: The result backend does not answer.
        """
        pending = PendingResult(message_id, on_chunk, float("inf") if deadline is None else deadline)
        try:
            source = self._start()
            self._wake()  # a lost connection is opened again
            source.expect(pending)
        except BACKEND_ERRORS as error:
            self.drop(message_id)
            raise BackendUnavailable(f"cannot wait for the answer of {agent!r}: {error}") from error
        self._wake()
        return pending.future

    def drop(self, message_id: str) -> None:
        """Stop waiting for a result, and remove it from the backend if it is stored there."""
        if self._pending.drop(message_id):
            self._wake()

    def revoke(self, message_id: str, reason: str) -> None:
        """Tell the caller of a request, in any process, that there will be no answer.

        Args:
            message_id: The id of the request.
            reason: Why there is no answer.

        Raises:
            BackendUnavailable: The result backend does not answer.
        """
        source = self._start()
        if source.reply_to is not None:  # such a backend does not know the caller's queue
            return
        try:
            source.backend.mark_as_revoked(message_id, reason)
        except BACKEND_ERRORS as error:
            raise BackendUnavailable(
                f"the caller of {message_id} could not be notified ({reason}): {error}"
            ) from error

    def __len__(self) -> int:
        return len(self._pending)

    def close(self) -> None:
        """End the thread. The futures of pending results raise BackendUnavailable."""
        thread = self._thread
        self._closed = True
        self._has_work.set()
        if thread is not None and self._pid == os.getpid() and thread is not threading.current_thread():
            thread.join(_END_SECONDS)
        self._thread = None  # a later request starts another one
        self._pending.fail(BackendUnavailable("the application was closed"))

    def _wake(self) -> None:
        """Let the thread receive, if it sleeps."""
        if not self._has_work.is_set():
            self._has_work.set()

    def _start(self) -> ResultSource:
        """Start the thread in this process, unless it is running, and return where it receives results."""
        self._reset_after_fork()
        if self._thread is None or not self._ready.is_set():
            with self._lock:
                if self._thread is None:
                    self._closed, self._start_error = False, None
                    self._ready.clear()
                    self._thread = threading.Thread(target=self._run, name="waooaw-results", daemon=True)
                    self._thread.start()
            if not self._ready.wait(_START_SECONDS):
                raise BackendUnavailable("the result backend does not answer")
        error, source = self._start_error, self._source
        if error is not None or source is None:
            raise BackendUnavailable(f"the result backend does not answer: {error}") from error
        return source

    def _run(self) -> None:
        try:
            source = self._open_source()
        except Exception as error:  # noqa: BLE001 - the caller that waits for the start raises it
            self._start_error, self._thread = error, None
            return
        finally:
            self._ready.set()
        while not self._closed:
            self._has_work.wait()
            try:
                source.receive(lambda: self._closed)
                source.forget(self._pending.take_ended())
            except BACKEND_ERRORS as error:
                logger.warning(
                    "the result backend does not answer, so waiting requests fail: %s",
                    error,
                    extra={"action": "results_interrupted"},
                )
                self._pending.fail(error)
                source.forget(self._pending.take_ended())  # or else the thread would try for as long as the outage
            except Exception:  # an unreadable message: fetching each result finds out which one
                logger.exception("a result cannot be read; its request fails", extra={"action": "damaged_result"})
                self._pending.fetch_all_now()
                source.fetch_due()
            if not self._closed:
                self._pending.clear_if_idle(self._has_work)
        self._pending.fail(BackendUnavailable("the application was closed"))
        source.forget(
            self._pending.take_ended()
        )  # a result that is garbage collected later would connect again to unsubscribe
        source.close()

    def _open_source(self) -> ResultSource:
        """Return where results arrive, over this thread's own backend, ready to receive."""
        backend: Any = self._app.backend
        source: ResultSource
        consumer = getattr(redis, "ResultConsumer")  # noqa: B009 - missing in its stubs
        # One that a project has put in its place is used.
        if isinstance(backend, redis.RedisBackend) and type(getattr(backend, "result_consumer", None)) is consumer:
            source = SubscribedResults(backend, self._pending, self._ids.start)
        else:
            source = ConsumedResults(self._app, backend, self._pending)
        source.open()
        self._source = source
        return source
