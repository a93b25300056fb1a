"""A message in an agent's worker, from its arrival until its end: what Celery calls a request."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from signal import SIGKILL, SIGTERM
from typing import Any

from billiard.common import TERM_SIGNAME
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import signals
from celery.app.task import Context
from celery.concurrency.prefork import TaskPool as ProcessPool
from celery.exceptions import Ignore, InvalidTaskError, Reject, Retry
from celery.platforms import signals as signal_numbers
from celery.worker import state
from kombu.exceptions import ContentDisallowed, DecodeError

from waooaw_celery.worker.cancellation import CancelAnswer, cancellations_of
from waooaw_celery.worker.execution.event_loop import cancel_handler
from waooaw_celery.worker.execution.interruptions import ends_worker
from waooaw_celery.worker.execution.pools import settle
from waooaw_celery.worker.execution.running_requests import Place
from waooaw_celery.worker.health.clock import clock_of
from waooaw_celery.worker.intake import Intake
from waooaw_celery.worker.outcomes.committed_effects import is_committed, was_committed_before
from waooaw_celery.worker.outcomes.follow_up_context import sending_follow_ups
from waooaw_celery.worker.timed_request import TimedRequest

logger = logging.getLogger(__name__)

#: How often, and every how many seconds, a process that was told to end is looked after.
LOOKS, LOOK_SECONDS = 40, 0.05
#: What Celery is told when the process of a handler ended, or is about to be ended.
_PROCESS_ENDED = (Terminated, WorkerLostError, TimeLimitExceeded, SystemExit, KeyboardInterrupt)


class AgentRequest(TimedRequest):
    """A request that is dropped when its message is to be cancelled, and whose handler can be stopped.

    Attributes:
        taken: whether it was given to the pool: from then on its handler begins, or has begun.
        place: where the pool accepted it; None before that.

    Raises:
        InvalidTaskError: Celery can make no request of the message; the consumer makes a dead letter of it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except (InvalidTaskError, ContentDisallowed, DecodeError):
            raise
        except Exception as error:  # a header that no check knows must not end the worker
            raise InvalidTaskError(f"Celery cannot make a request of it: {error!r:.200}") from error
        self.taken = False
        self.place: Place | None = None
        self._deciding = threading.RLock()  # a timer's thread may bring it to the pool
        self._stop_in: Any = None
        self._noted: bool | None = None
        #: Whether its process ended after the commit, so that the message comes again.
        self._comes_again = False
        self._cancels = cancellations_of(self.app)
        app: Any = self.app
        self._intake: Intake = app.intake

    def revoked(self) -> bool:
        """Whether it is not to be begun; the last time that Celery asks is just before it goes to the pool."""
        with self._deciding:
            if not self._is_noted():
                if not self.taken and self.id in self._cancels:
                    state.revoked.add(self.id)
                if super().revoked():
                    state.task_ready(self)  # also one that was dropped before its time had come
                    return True
            if self in state.reserved_requests:
                self.taken = True
                self._cancels.take(self.id)
            return False

    def _is_noted(self) -> bool:
        """Whether it would be dropped, and goes to its handler all the same, since its effect is committed."""
        if not getattr(self.task, "once", False) or self.taken:
            return False
        over = self.expires is not None and self.expires <= clock_of(self.app).now()
        if not over and self.id not in self._cancels and self.id not in state.revoked:
            return False
        if self._noted is None:
            self._noted = was_committed_before(self.task, Context(self.request_dict))
        return self._noted

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
        self.place = Place.here()
        super().on_accepted(pid, time_accepted)
        with self._deciding:
            stop = self._stop_in is not None
        if stop:
            self._end_process()

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End its handler for an operator, and write down the end when it is known."""
        if not getattr(self.task, "once", False) or not isinstance(pool, ProcessPool):
            super().terminate(pool, signal)
        elif self.time_start:
            pool.terminate_job(self.worker_pid, signal_numbers.signum(signal or TERM_SIGNAME))
        else:
            self._terminate_on_ack = pool, signal

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """The handler raised, or its process is gone, or Celery's tracing raised: the message comes to an end."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, _PROCESS_ENDED) and self._give_back(error):
            return
        told = return_ok or isinstance(error, Ignore | Reject | Retry)
        report = None if told else exc_info
        self._end(
            lambda: super(AgentRequest, self).on_failure(exc_info, send_failed_event, return_ok), report, error
        )

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """The time limit has passed; after the hard one the message comes to an end."""
        if soft:
            super().on_timeout(soft, timeout)
        elif not self._comes_again:
            error = TimeLimitExceeded(timeout)
            self._end(lambda: super(AgentRequest, self).on_timeout(soft, timeout), None, error, failed=True)

    @property
    def _facts(self) -> Context:
        facts: Context = self._context  # type: ignore[attr-defined]  # newer than its stubs
        return facts

    def _end(
        self, celerys_way: Callable[[], object], report: Any, error: BaseException, *, failed: bool = False
    ) -> None:
        """End the message in Celery's way; where that raises, tell those who listen for failures, and let it go.

        Celery stores the result, sends errbacks and tells of the failure in this order, and any part may raise.

        Args:
            celerys_way: does it.
            report: Celery's facts about the error; None when the failure was told already, or there is none.
            error: what ended the message.
            failed: whether it has failed although there is no report.
        """
        try:
            with sending_follow_ups(self.task, self._facts):
                celerys_way()
        except BaseException as wrong:
            if ends_worker(wrong):
                raise
            logger.exception(
                "the end of %s was not noted as usual: its message is acknowledged",
                self,
                extra={"action": "end_not_noted", "message_id": self.id},
            )
            if report is not None or failed:
                self._tell_failure(error, report)
            settle(self)
        finally:
            if report is not None or failed:
                # Celery tells of a hard time limit twice, and would send errbacks each time.
                self._facts.update({"errbacks": None, "chain": None, "chord": None})

    def _tell_failure(self, error: BaseException, report: Any) -> None:
        with sending_follow_ups(self.task, self._facts):
            signals.task_failure.send(
                sender=self.task,
                task_id=self.id,
                exception=error,
                args=self.args,
                kwargs=self.kwargs,
                traceback=getattr(report, "traceback", None),
                einfo=report,
            )

    def _give_back(self, error: BaseException) -> bool:
        """Have the message come again when its effect is committed, and return whether that is so.

        Its handler then finds the effect, and whoever waits is told as after any other end.
        """
        if not getattr(self.task, "once", False):
            return False
        if isinstance(error, TimeLimitExceeded) and self.worker_pid:
            # The pool ends the process after it has told us: until then the handler might still commit.
            with suppress(ProcessLookupError):
                os.kill(int(self.worker_pid), SIGKILL)
        if not is_committed(self.task, str(self.id)):
            return False
        self._comes_again = True
        state.task_ready(self)
        self.reject(requeue=True)
        return True

    def _end_process(self) -> None:
        # Once only: the second signal would end the process before the handler has cleaned up.
        self._stop_in.terminate_job(self.worker_pid, SIGTERM)


def apply_cancellation(app: Any, consumer: Any, message_id: str, running: bool) -> CancelAnswer:
    """Cancel a message as far as that is this worker's business, in the thread that consumes."""
    cancels = cancellations_of(app)
    cancels.add(message_id, running)
    request = state.requests.get(message_id)
    if not isinstance(request, AgentRequest):
        return CancelAnswer.BEGUN if cancels.has_taken(message_id) else CancelAnswer.PROMISED
    if request.drop():
        return CancelAnswer.DROPPED
    if not running:
        return CancelAnswer.BEGUN
    if not request.stop(consumer.pool):
        return CancelAnswer.NOT_STOPPABLE
    if consumer.hub is not None and isinstance(consumer.pool, ProcessPool):
        request.look_after(consumer.pool, consumer.timer)
    return CancelAnswer.STOPPING


def stop_handler(pool: Any, message_ids: list[str]) -> None:
    """Stop those handlers that run of messages that are to be cancelled; from any thread."""
    for message_id in message_ids:
        request = state.requests.get(message_id)
        if isinstance(request, AgentRequest) and request.taken:
            request.stop(pool)
