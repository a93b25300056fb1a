"""Results that Celery's own consumer receives, or that are asked for: on every result backend except Redis."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery
from celery.backends.asynchronous import AsyncBackendMixin
from celery.result import AsyncResult
from kombu.common import maybe_declare

from waooaw_celery.results.pending import BACKEND_ERRORS, CHUNK, PendingResult, PendingResults
from waooaw_celery.results.source import ROUND_SECONDS, log_not_removed


class ConsumedResults:
    """The source of results on a backend that sends them as messages, or that is asked ten times a second.

    Args:
        app: The application.
        backend: Its result backend of the collector's thread.
        pending: The requests.
    """

    def __init__(self, app: Celery, backend: Any, pending: PendingResults) -> None:
        self.backend = backend
        self._app, self._pending = app, pending
        self._notifies = isinstance(backend, AsyncBackendMixin)
        #: Whether the thread is fetching a result. Chunks that it reads then may also arrive as messages.
        self._fetching = False

    @property
    def reply_to(self) -> str | None:
        """The queue for results; None on a backend that stores them. See `ResultSource`."""
        return getattr(self.backend, "oid", None)

    def open(self) -> None:
        """Be ready to receive. See `ResultSource.open`."""
        if not self._notifies:
            return
        consumer: Any = self.backend.result_consumer
        consumer.on_message = self._on_message
        if hasattr(self.backend, "binding"):  # it sends results as messages, to this thread's own queue
            with self._app.producer_or_acquire() as producer:
                maybe_declare(self.backend.binding(producer.channel), retry=True)
            consumer.start("")

    def expect(self, pending: PendingResult) -> None:
        """Prepare for the result of a request. See `ResultSource.expect`."""
        result: AsyncResult[Any] = self._app.AsyncResult(pending.message_id, backend=self.backend)
        pending.celery_result = result
        self._pending.add(pending)
        result.on_ready.then(self._resolve)
        if self._notifies:
            self.backend.add_pending_result(result)

    def receive(self, ends: Callable[[], bool]) -> None:
        """Receive results until none is pending. See `ResultSource.receive`."""
        if not self._notifies:
            self.fetch_due()
            return
        drainer: Any = self.backend.result_consumer.drainer
        for _ in drainer.drain_events_until(_NothingPending(self._pending, ends), interval=ROUND_SECONDS):
            self.forget(self._pending.take_ended())
            self.fetch_due()

    def fetch_due(self) -> None:
        """Fetch results without a notification. See `ResultSource.fetch_due`."""
        if not self._notifies:
            time.sleep(ROUND_SECONDS)
        now = time.monotonic()
        for pending in self._pending.due(now if self._notifies else math.inf):
            pending.plan_next_fetch(now)
            self._fetching = True
            result: Any = pending.celery_result
            try:
                if self._notifies:
                    self.backend.result_consumer.on_wait_for_pending(result)
                else:
                    result.ready()  # calls on_ready
            except Exception as error:  # noqa: BLE001 - no answer, or a damaged result: the future raises it
                self._pending.fail(error, pending.message_id)
            finally:
                self._fetching = False

    def forget(self, ended: Sequence[PendingResult]) -> None:
        """Remove the results of requests from the backend. See `ResultSource.forget`."""
        for pending in ended:
            try:
                if pending.celery_result is not None:
                    pending.celery_result.forget()
            except BACKEND_ERRORS as error:
                log_not_removed(1, error)

    def close(self) -> None:
        """Close the connections. See `ResultSource.close`."""
        if self._notifies:
            self.backend.result_consumer.stop()

    def _resolve(self, result: AsyncResult[Any]) -> None:
        message_id = str(result.id)
        try:
            meta = {"status": result.state, "result": result.result, "traceback": result.traceback}
        except Exception as error:  # noqa: BLE001 - a damaged result: its future raises the error
            self._pending.fail(error, message_id)
        else:
            self._pending.resolve(message_id, meta)

    def _on_message(self, meta: Any) -> None:
        if self._fetching or meta["status"] != CHUNK:
            return
        pending = self._pending.get(meta["task_id"])
        if pending is not None:
            self._pending.pass_chunk(pending, meta.get("result"))


class _NothingPending:
    """What the thread waits for while it receives, in place of a single result."""

    def __init__(self, pending: PendingResults, ends: Callable[[], bool]) -> None:
        self._pending, self._ends = pending, ends

    @property
    def ready(self) -> bool:
        return self._ends() or not self._pending
