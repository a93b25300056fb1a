"""The autoscaler: Celery's, which grows and shrinks a worker's pool by what waits in the worker's queues."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from celery.worker import state
from celery.worker.autoscale import Autoscaler

from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.worker.scaling.backlog_reader import BacklogReader
from waooaw_celery.worker.scaling.scaling_rule import Backlog, Recommendations, recommended_size

logger = get_logger(__name__)

#: Seconds between two looks at the queues.
LOOK_SECONDS = 1.0


class BacklogAutoscaler(Autoscaler):
    """Scales a worker's pool between a least and a largest size, by the messages that wait in its queues.

    Celery's autoscaler counts the messages that the worker has fetched, and so fetches as many as its largest
    size: they wait in this worker while others are idle, and an urgent one waits behind them. This one looks into
    the queues, and fetches as many messages as the pool has places.

    A thread looks into the queues. The pool is changed where Celery changes it: in the event loop, if there is
    one.

    Args:
        pool: the worker's pool.
        max_concurrency: its largest size.
        min_concurrency: its least size.
        worker: Celery's worker.
        options: Celery's ``keepalive``, the seconds for which a pool that is too large stays as it is, and
            ``mutex``.
    """

    def __init__(
        self, pool: Any, max_concurrency: int, min_concurrency: int = 1, worker: Any = None, **options: Any
    ) -> None:
        super().__init__(pool, max_concurrency, max(min_concurrency, 1), worker=worker, **options)
        self.name = "waooaw-autoscaler"
        self._app = worker.app
        self._reader = BacklogReader(worker.app)
        self._recommendations = Recommendations(self.keepalive)
        self._failed = False
        self._began = False

    def body(self) -> None:
        """Look into the queues once, have the pool scaled, and wait."""
        try:
            backlog = self._reader.read()
        except Exception as error:  # noqa: BLE001 - it is logged; an error here would end the worker
            self._log_failure(error)
        else:
            self._log_failure(None)
            if self.worker.use_eventloop:
                self.worker.hub.call_soon(self._scale_or_log, backlog)
            else:
                self._scale_or_log(backlog)
        time.sleep(LOOK_SECONDS)

    def maybe_scale(self, req: Any = None) -> None:
        """Note that the worker received a message. Celery calls it, also regularly."""
        if req is not None:
            self.on_task_received(req)

    def on_task_received(self, req: Any) -> None:
        """Note that the worker received a message."""
        self._reader.received(req)

    def scale(self, backlog: Backlog) -> None:
        """Grow the pool at once, or shrink it when it was too large for a while.

        Args:
            backlog: what waits for the worker.
        """
        with self.mutex:
            size = self.processes
            age = self._app.settings.autoscale_age
            wanted = recommended_size(size, self.qty, backlog, age)
            if not self._began:  # the size at the start is kept for as long as any other
                self._began, wanted = True, max(wanted, size)
            target = self._recommendations.highest(time.monotonic(), wanted)
            target = min(max(target, self.min_concurrency), self.max_concurrency)
            if target > size:
                self._grow(target - size)
            elif target < size:
                self._shrink(size - target)

    def _scale_or_log(self, backlog: Backlog) -> None:
        try:
            self.scale(backlog)
        except Exception:  # such as a process that cannot be started: it must not end the worker
            logger.exception("the autoscaler cannot change the pool", extra={"action": "autoscale_failed"})

    def stop(self) -> None:
        """End the thread."""
        if self.is_alive():
            super().stop()
        self._reader.close()

    def _grow(self, n: int) -> None:
        super()._grow(n)  # type: ignore[misc]  # missing from its stubs
        self._update_prefetch(n)

    def _shrink(self, n: int) -> None:
        before = self.processes
        super()._shrink(n)  # type: ignore[misc]  # missing from its stubs
        self._update_prefetch(self.processes - before)

    def _update_prefetch(self, change: int) -> None:
        if change:
            self.worker.consumer._update_prefetch_count(change)

    def _update_consumer_prefetch_count(self, new_max: int) -> None:
        """Do nothing: the number of fetched messages follows the size of the pool, not its largest size."""

    @property
    def qty(self) -> int:
        """How many messages the worker holds, except those that are not due."""
        return len(state.reserved_requests)

    def _log_failure(self, error: Exception | None) -> None:
        """Log the first failure of an outage, and its end; the next look opens new connections."""
        failed, self._failed = self._failed, error is not None
        if error is not None:
            with suppress(Exception):
                self._reader.close()
        if error is not None and not failed:
            logger.warning(
                "the autoscaler cannot look into the queues, and leaves the pool as it is: %s",
                error,
                extra={"action": "autoscale_blind"},
            )
        elif failed and error is None:
            logger.warning("the autoscaler looks into the queues again", extra={"action": "autoscale_back"})
