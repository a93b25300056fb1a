"""The result collector: one thread that receives the results of all requests that a process waits for."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from celery import Celery
from celery.backends.asynchronous import AsyncBackendMixin
from celery.backends.redis import RedisBackend
from celery.result import AsyncResult
from celery.states import READY_STATES
from kombu.common import maybe_declare

from waooaw_celery.errors import BackendUnavailable
from waooaw_celery.results.pending import (
    BACKEND_ERRORS,
    FETCH_AFTER_SECONDS,
    PendingResult,
    PendingResults,
    ResultMessage,
)

logger = logging.getLogger(__name__)

#: Seconds between two rounds of the thread's other work. A result that arrives is taken at once.
_ROUND_SECONDS = 0.1
#: Seconds after which a result that was seen is taken even if messages never stopped arriving.
_CHUNKS_SECONDS = 10.0
#: Seconds that the thread has to start, and to end.
_START_SECONDS = 10.0
_END_SECONDS = 5.0
#: The state of a request while its answer arrives in chunks: one of Celery's custom states.
CHUNK = "CHUNK"


class ResultCollector:
    """Receives the results of this process's requests, gives each to its caller, and removes it from the backend.

    The thread starts with the first request. Safe for several threads, and for use after a fork.

    Args:
        app: The application whose result backend carries the results.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._pending = PendingResults()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._has_work = threading.Event()
        self._closed = False
        self._start_error: BaseException | None = None
        self._backend: Any = None
        #: Whether the thread is fetching a result. Chunks that it reads then may also arrive as messages.
        self._fetching = False
        #: Whether a message arrived in this round, and when the last round without one ended.
        self._message_arrived, self._quiet_at = False, 0.0

    @property
    def reply_to(self) -> str | None:
        """The queue for results, on a result backend that sends them as messages; None on one that stores them."""
        return getattr(self._backend, "oid", None)

    def expect(
        self, message_id: str, agent: str, on_chunk: Callable[[Any], None] | None = None
    ) -> Future[ResultMessage]:
        """Start to wait for the result of a request. Call this before you publish the request.

        Args:
            message_id: The id of the request.
            agent: The agent that is asked, for error messages.
            on_chunk: Called with each chunk of a streamed answer, in the collector's thread.

        Returns:
            A future of the result. It raises what the result backend raised if the result cannot be received.

        Raises:
            BackendUnavailable: The result backend does not answer.
        """
        try:
            self._start()
            result: AsyncResult[Any] = self._app.AsyncResult(message_id, backend=self._backend)
            pending = PendingResult(result, on_chunk)
            self._pending.add(message_id, pending)
            result.on_ready.then(self._pending.resolve)
            if isinstance(self._backend, AsyncBackendMixin):
                self._backend.add_pending_result(result)
        except BACKEND_ERRORS as error:
            self.drop(message_id)
            raise BackendUnavailable(f"no answer of {agent!r} can be awaited: {error}") from error
        self._has_work.set()
        return pending.future

    def drop(self, message_id: str) -> None:
        """Stop waiting for a result, and remove it from the backend if it is stored there."""
        if self._pending.drop(message_id):
            self._has_work.set()

    def revoke(self, message_id: str, reason: str) -> None:
        """Tell the caller of a request, in any process, that there will be no answer.

        Args:
            message_id: The id of the request.
            reason: Why there is no answer.

        Raises:
            BackendUnavailable: The result backend does not answer.
        """
        self._start()
        if self.reply_to is not None:  # such a backend does not know the caller's queue
            return
        try:
            self._backend.mark_as_revoked(message_id, reason)
        except BACKEND_ERRORS as error:
            raise BackendUnavailable(f"the caller of {message_id} ({reason}) was not told: {error}") from error

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

    def _start(self) -> None:
        """Start the thread in this process, unless it is running."""
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if self._thread is None:
                self._closed, self._start_error = False, None
                self._ready.clear()
                self._thread = threading.Thread(target=self._run, name="waooaw-results", daemon=True)
                self._thread.start()
        if not self._ready.wait(_START_SECONDS) or self._start_error is not None:
            raise BackendUnavailable(
                f"the result backend does not answer: {self._start_error}"
            ) from self._start_error

    def _run(self) -> None:
        try:
            self._backend = self._open_backend()
        except Exception as error:  # noqa: BLE001 - the caller that waits for the start raises it
            self._start_error, self._thread = error, None
            return
        finally:
            self._ready.set()
        while not self._closed:
            self._has_work.wait()
            try:
                self._receive()
                self._pending.forget_ended()
            except BACKEND_ERRORS as error:
                logger.warning(
                    "the result backend does not answer: %s", error, extra={"action": "results_interrupted"}
                )
                self._pending.fail(error)
            except Exception:  # an unreadable message: fetching each result finds out which one
                logger.exception("a result cannot be read", extra={"action": "damaged_result"})
                self._pending.fetch_all_now()
                self._fetch_due()
            if not self._closed:
                self._pending.clear_if_idle(self._has_work)
        self._pending.fail(BackendUnavailable("the application was closed"))
        self._pending.forget_ended()  # a result that is garbage collected later would connect again to unsubscribe
        self._close_backend()

    def _open_backend(self) -> Any:
        """Return this thread's own backend, ready to receive."""
        backend: Any = self._app.backend
        if isinstance(backend, AsyncBackendMixin):
            consumer: Any = backend.result_consumer  # type: ignore[attr-defined]  # missing in its stubs
            consumer.on_message = self._on_message
            if hasattr(backend, "binding"):  # it sends results as messages, to this thread's own queue
                with self._app.producer_or_acquire() as producer:
                    maybe_declare(backend.binding(producer.channel), retry=True)
                consumer.start("")
        return backend

    def _close_backend(self) -> None:
        """Close the connections of this thread's own backend."""
        if isinstance(self._backend, AsyncBackendMixin):
            self._backend.result_consumer.stop()  # type: ignore[attr-defined]  # missing in its stubs
        if isinstance(self._backend, RedisBackend):
            self._backend.client.connection_pool.disconnect()

    def _receive(self) -> None:
        """Receive results until none is pending."""
        if not isinstance(self._backend, AsyncBackendMixin):
            self._fetch_due()
            return
        consumer: Any = self._backend.result_consumer  # type: ignore[attr-defined]  # missing in its stubs
        round_began = time.monotonic()
        for _ in consumer.drainer.drain_events_until(_NothingPending(self), interval=_ROUND_SECONDS):
            now = time.monotonic()
            if not self._message_arrived and now > round_began + _ROUND_SECONDS / 2:
                self._quiet_at = now
            self._message_arrived = False
            self._pending.forget_ended()
            self._fetch_due()
            round_began = time.monotonic()

    def _fetch_due(self) -> None:
        """Fetch results without a notification: it was lost with a connection, or the backend sends none."""
        notifies = isinstance(self._backend, AsyncBackendMixin)
        if not notifies:
            time.sleep(_ROUND_SECONDS)
        now = time.monotonic()
        for message_id, pending in self._pending.due(now if notifies else math.inf):
            pending.fetch_after *= 2
            pending.fetch_at = now + pending.fetch_after
            self._fetching = True
            try:
                if not notifies:
                    pending.result.ready()  # calls on_ready
                elif not self._must_wait_for_chunks(message_id, pending, now):
                    self._backend.result_consumer.on_wait_for_pending(pending.result)
            except Exception as error:  # noqa: BLE001 - no answer, or a damaged result: the future raises it
                self._pending.fail(error, message_id)
            finally:
                self._fetching = False

    def _must_wait_for_chunks(self, message_id: str, pending: PendingResult, now: float) -> bool:
        """Whether to leave a result in the backend because chunks of it may still arrive.

        A worker publishes the chunks before it stores the result, but a fetch may see the result before the chunks
        arrive. After a round without any message all of them have arrived.
        """
        if pending.on_chunk is None or not isinstance(self._backend, RedisBackend):
            return False
        if pending.seen_at is None:
            if self._backend.get_task_meta(message_id)["status"] not in READY_STATES:
                return True
            pending.seen_at = now
        must_wait = self._quiet_at <= pending.seen_at and now < pending.seen_at + _CHUNKS_SECONDS
        if must_wait:
            pending.fetch_at = now + FETCH_AFTER_SECONDS
        return must_wait

    def _on_message(self, meta: Any) -> None:
        if self._fetching:
            return
        self._message_arrived = True
        if meta["status"] == CHUNK:
            pending = self._pending.get(meta["task_id"])
            if pending is not None and pending.on_chunk is not None:
                pending.on_chunk(meta["result"])


class _NothingPending:
    """What the thread waits for while it receives, in place of a single result."""

    def __init__(self, collector: ResultCollector) -> None:
        self._collector = collector

    @property
    def ready(self) -> bool:
        return self._collector._closed or not self._collector._pending
