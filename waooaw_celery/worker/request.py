"""A message in an agent's worker, from its arrival until its end: what Celery calls a request."""

from __future__ import annotations

import signal
import threading
from typing import Any

from celery.concurrency.prefork import TaskPool as ProcessPool
from celery.worker import state
from celery.worker.request import Request

from waooaw_celery.worker.cancels import Answer, cancels_of
from waooaw_celery.worker.intake import Intake
from waooaw_celery.worker.loop import cancel_handler

#: How often, and every how many seconds, a process that was told to end is looked after.
LOOKS, LOOK_SECONDS = 40, 0.05


class AgentRequest(Request):
    """A request that is dropped when its message is to be cancelled, and whose handler can be stopped.

    Attributes:
        taken: whether it was given to the pool: from then on its handler begins, or has begun.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.taken = False
        self._deciding = threading.RLock()  # a timer's thread may bring it to the pool
        self._stop_in: Any = None
        self._cancels = cancels_of(self.app)
        app: Any = self.app
        self._intake: Intake = app.intake

    def revoked(self) -> bool:
        """Whether it is not to be begun; the last time that Celery asks is just before it goes to the pool."""
        with self._deciding:
            if not self.taken and self.id in self._cancels:
                state.revoked.add(self.id)
            if super().revoked():
                state.task_ready(self)  # also one that was dropped before its time had come
                return True
            if self in state.reserved_requests:
                self.taken = True
                self._cancels.take(self.id)
            return False

    def acknowledge(self) -> None:
        """Acknowledge its message: later, when what became of it can be written down nowhere."""
        if self.acknowledged or not self._intake.waits(self, self.acknowledge):
            super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        """Give its message back, or let it go for good: that later, as when it is acknowledged."""
        if requeue or self.acknowledged or not self._intake.waits(self, self.reject):
            super().reject(requeue)

    def drop(self) -> bool:
        """Drop it if it was not given to the pool yet, and return whether that is so."""
        with self._deciding:
            return not self.taken and self.revoked()

    def stop(self, pool: Any) -> bool:
        """Tell its handler to stop, and return whether it can be told.

        A coroutine is cancelled where it runs; a process of the prefork pool is told to end, and the coroutine in
        it is cancelled by that. Celery's ``terminate`` would write down the end before it is known.
        """
        if not isinstance(pool, ProcessPool):
            return cancel_handler(self.id) or bool(getattr(self.task, "stoppable", False))
        with self._deciding:
            first, self._stop_in = self._stop_in is None, pool
        if first and self.time_start:
            self._end_process()
        return True

    def look_after(self, pool: Any, timer: Any, times: int = LOOKS) -> None:
        """Have the pool look whether the process has ended; to be called in the event loop.

        It is told when the process closes its last file, which is a moment before it has ended: then it looks in
        vain, and again only seconds later.
        """
        if times and state.requests.get(self.id) is self:
            pool.maintain_pool()
            timer.call_after(LOOK_SECONDS, self.look_after, (pool, timer, times - 1))

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """A process or thread begins with it."""
        super().on_accepted(pid, time_accepted)
        with self._deciding:
            stop = self._stop_in is not None
        if stop:
            self._end_process()

    def _end_process(self) -> None:
        # Once only: the second signal would end the process before the handler has cleaned up.
        self._stop_in.terminate_job(self.worker_pid, signal.SIGTERM)


def obey(app: Any, consumer: Any, message_id: str, running: bool) -> Answer:
    """Cancel a message as far as that is this worker's business, in the thread that consumes."""
    cancels = cancels_of(app)
    cancels.add(message_id, running)
    request = state.requests.get(message_id)
    if not isinstance(request, AgentRequest):
        return Answer.BEGUN if cancels.has_taken(message_id) else Answer.PROMISED
    if request.drop():
        return Answer.DROPPED
    if not running:
        return Answer.BEGUN
    if not request.stop(consumer.pool):
        return Answer.NOT_STOPPABLE
    if consumer.hub is not None and isinstance(consumer.pool, ProcessPool):
        request.look_after(consumer.pool, consumer.timer)
    return Answer.STOPPING


def stop_running(pool: Any, message_ids: list[str]) -> None:
    """Stop those handlers that run of messages that are to be cancelled; from any thread."""
    for message_id in message_ids:
        request = state.requests.get(message_id)
        if isinstance(request, AgentRequest) and request.taken:
            request.stop(pool)
