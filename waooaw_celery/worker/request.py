"""A message in an agent's worker from its arrival to its acknowledgement: Celery's request."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
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

from waooaw_celery.errors import DeadlineExceeded, InvalidArguments
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.monitoring.metrics.measured_handling import note_processed, note_skipped
from waooaw_celery.monitoring.metrics.process_metrics import process_metrics
from waooaw_celery.monitoring.tracing.nested_headers import with_nested_headers
from waooaw_celery.worker.cancellation import CancelAnswer, cancellations_of
from waooaw_celery.worker.execution.event_loop import cancel_handler
from waooaw_celery.worker.execution.interruptions import ends_worker
from waooaw_celery.worker.execution.pools import settle
from waooaw_celery.worker.execution.running_requests import Place
from waooaw_celery.worker.health.clock import clock_of
from waooaw_celery.worker.intake import Intake
from waooaw_celery.worker.ordering.retries import keep_place
from waooaw_celery.worker.outcomes.acknowledged_outcomes import mark
from waooaw_celery.worker.outcomes.committed_effects import is_committed, was_committed_before
from waooaw_celery.worker.outcomes.follow_up_context import sending_follow_ups
from waooaw_celery.worker.outcomes.hidden_payloads import HidingRequest, reporting
from waooaw_celery.worker.timed_request import TimedRequest, as_datetime

logger = get_logger(__name__)

#: How often, and every how many seconds, the pool checks whether a process that got SIGTERM has ended.
CHECKS, CHECK_SECONDS = 40, 0.05
#: The errors of a message that say nothing about the health of its agent.
_NOT_A_FAULT = (Ignore, Reject, InvalidArguments, DeadlineExceeded)
#: The errors that Celery reports when the process of a handler has ended, or is about to be ended.
_PROCESS_ENDED = (Terminated, WorkerLostError, TimeLimitExceeded, SystemExit, KeyboardInterrupt)


class AgentRequest(HidingRequest, TimedRequest):
    """A request that can be cancelled: dropped before its handler starts, or stopped while the handler runs.

    Attributes:
        taken: whether the pool has it. From then on its handler starts, or has started.
        place: where the pool accepted it; None before that.

    Raises:
        InvalidTaskError: Celery cannot make a request of the message. The consumer makes a dead letter of it.
    """

    #: Whether the pool reports its outcome alone, and not with those of a batch.
    ends_alone = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **{"maybe_iso8601": as_datetime, **kwargs})
            self.request_dict.update(with_nested_headers(self.message.headers))
        except (InvalidTaskError, ContentDisallowed, DecodeError):
            raise
        except Exception as error:  # a header that no check covers must not end the worker
            raise InvalidTaskError(f"Celery cannot create a request from it: {error!r:.200}") from error
        mark(self)
        self.taken = False
        self.place: Place | None = None
        self._is_noted = False
        self._lock = threading.RLock()  # a timer's thread may give it to the pool
        #: The pool in which its handler is to be stopped.
        self._stopping_pool: Any = None
        #: Whether its effect is committed; None: not asked yet.
        self._committed: bool | None = None
        #: Whether its process ended after the commit, so that the message is redelivered.
        self._requeued = False
        self._cancellations = cancellations_of(self.app)
        app: Any = self.app
        self._intake: Intake = app.intake

    def revoked(self) -> bool:
        """Return whether the handler must not start; Celery asks last just before it calls the pool."""
        with self._lock:
            if not self._is_committed():
                if not self.taken and self.id in self._cancellations:
                    state.revoked.add(self.id)
                if super().revoked():
                    state.task_ready(self)  # also one that was dropped before it was due
                    metrics = process_metrics()
                    if metrics is not None:
                        note_skipped(metrics, self.task, cancelled=self.id in self._cancellations)
                    return True
            if self in state.reserved_requests:
                self.taken = True
                self._cancellations.take(self.id)
            return False

    def _is_committed(self) -> bool:
        """Return whether it would be dropped, but its effect is committed: then its handler still runs."""
        if not getattr(self.task, "once", False) or self.taken:
            return False
        expired = self.expires is not None and self.expires <= clock_of(self.app).now()
        if not expired and self.id not in self._cancellations and self.id not in state.revoked:
            return False
        if self._committed is None:
            self._committed = was_committed_before(self.task, Context(self.request_dict))
        return self._committed

    def acknowledge(self) -> None:
        """Acknowledge its message, once its outcome is recorded."""
        if self.time_start and not self._is_noted and self.task.acks_late:
            self._note_outcome()
        if self.acknowledged or not self._intake.defer(self, self.acknowledge):
            super().acknowledge()

    def _note_outcome(self) -> None:
        """Note for the agent's health how the message ended."""
        self._is_noted = True
        app: Any = self.app
        seconds, waited = time.time() - (self.time_start or 0.0), self._waited()
        app.outcomes.note(
            self.task.agent,  # type: ignore[attr-defined]  # an AgentTask
            seconds,
            failed=self.ended_by is not None and not isinstance(self.ended_by, _NOT_A_FAULT),
            waited=waited,
        )
        metrics = process_metrics()
        if metrics is not None:
            note_processed(metrics, self.task, self.request_dict, seconds, waited, self.ended_by)

    def _waited(self) -> float | None:
        """Return how long the message waited in its queue, in seconds; None for a retry or a delayed one."""
        headers = self.request_dict
        envelope = headers.get(ENVELOPE_HEADER)
        sent_at = envelope.get("sent_at") if isinstance(envelope, dict) else None
        if sent_at is None or headers.get("retries") or headers.get("eta") or not self.time_start:
            return None
        try:
            sent = clock_of(self.app).to_local(datetime.fromisoformat(sent_at))
            return max(self.time_start - sent.timestamp(), 0.0)
        except (ValueError, TypeError, OverflowError):  # another program wrote the envelope
            return None

    def reject(self, requeue: bool = False) -> None:
        """Requeue its message at once, or discard it, once its outcome is recorded."""
        if requeue or self.acknowledged or not self._intake.defer(self, self.reject):
            super().reject(requeue)

    def drop(self) -> bool:
        """Drop it unless the pool has it, and return whether it was dropped."""
        with self._lock:
            return not self.taken and self.revoked()

    def stop(self, pool: Any) -> bool:
        """Stop its handler, and return whether that is possible.

        A coroutine is cancelled where it runs. A process of the prefork pool gets SIGTERM, which cancels the
        coroutine in it. Celery's ``terminate`` would record the outcome before it is known.

        Args:
            pool: the worker's pool.
        """
        if not isinstance(pool, ProcessPool):
            return cancel_handler(self.id) or bool(getattr(self.task, "stoppable", False))
        with self._lock:
            first, self._stopping_pool = self._stopping_pool is None, pool
        if first and self.time_start:
            self._end_process()
        return True

    def check_process(self, pool: Any, timer: Any, times: int = CHECKS) -> None:
        """Have the pool check repeatedly whether the process has ended; call it in the event loop.

        The pool hears when the process closes its last file, just before it ends. It checks then, finds a living
        process, and would check again only seconds later.

        Args:
            pool: the worker's pool.
            timer: the event loop's timer.
            times: how many checks are left.
        """
        if times and state.requests.get(self.id) is self:
            pool.maintain_pool()
            timer.call_after(CHECK_SECONDS, self.check_process, (pool, timer, times - 1))

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """Note where the pool accepted it, and stop its handler if that was asked for meanwhile."""
        self.place = Place.here()
        super().on_accepted(pid, time_accepted)
        with self._lock:
            is_stopping = self._stopping_pool is not None
        if is_stopping:
            self._end_process()

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End its handler for an operator; the outcome is recorded when it is known."""
        if not getattr(self.task, "once", False) or not isinstance(pool, ProcessPool):
            super().terminate(pool, signal)
        elif self.time_start:
            pool.terminate_job(self.worker_pid, signal_numbers.signum(signal or TERM_SIGNAME))
        else:
            self._terminate_on_ack = pool, signal

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """End the message: its handler raised, its process is gone, or Celery's tracing raised."""
        error = exc_info.exception
        # Not ``Retry``, whose attribute of this name is the error for which the handler is tried again.
        if not isinstance(error, Retry):
            error = getattr(error, "exc", error)
        if isinstance(error, _PROCESS_ENDED) and self._requeue_if_committed(error):
            return
        if isinstance(error, Retry) and getattr(self.task, "key_policy", None) is not None:
            keep_place(self)
        is_reported = return_ok or isinstance(error, Ignore | Reject | Retry)
        report = None if is_reported else exc_info
        self._end(
            lambda: super(AgentRequest, self).on_failure(exc_info, send_failed_event, return_ok), report, error
        )

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Log that the soft time limit has passed, or end the message at the hard one."""
        if soft:
            super().on_timeout(soft, timeout)
        elif not self._requeued:
            error = TimeLimitExceeded(timeout)
            self._end(lambda: super(AgentRequest, self).on_timeout(soft, timeout), None, error, failed=True)

    @property
    def _facts(self) -> Context:
        facts: Context = self._context  # type: ignore[attr-defined]  # newer than its stubs
        return facts

    def _end(
        self, end_in_celery: Callable[[], object], report: Any, error: BaseException, *, failed: bool = False
    ) -> None:
        """End the message as Celery does. If that raises, send the failure signal and settle the message.

        Celery stores the result, sends errbacks and sends the failure signal, in this order. Each may raise.

        Args:
            end_in_celery: ends it.
            report: Celery's facts about the error; None: the failure was signalled already, or there is none.
            error: what ended the message.
            failed: whether the message has failed although there is no report.
        """
        self.ended_by = error
        try:
            with reporting(self.task), sending_follow_ups(self.task, self._facts):
                end_in_celery()
        except BaseException as wrong:
            if ends_worker(wrong):
                raise
            logger.exception(
                "Celery failed to record the end of %s; its message is acknowledged",
                self,
                extra={"action": "end_not_noted", "message_id": self.id},
            )
            if report is not None or failed:
                self._send_failure(error, report)
            settle(self)
        finally:
            if report is not None or failed:
                # Celery reports a hard time limit twice, and would send the errbacks each time.
                self._facts.update({"errbacks": None, "chain": None, "chord": None})

    def _send_failure(self, error: BaseException, report: Any) -> None:
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

    def _requeue_if_committed(self, error: BaseException) -> bool:
        """Requeue the message if its effect is committed, and return whether it was requeued.

        Its handler then finds the effect and returns the result, so that the caller gets its answer.
        """
        if not getattr(self.task, "once", False):
            return False
        if isinstance(error, TimeLimitExceeded) and self.worker_pid:
            # The pool ends the process only after this call: until then the handler might still commit.
            with suppress(ProcessLookupError):
                os.kill(int(self.worker_pid), SIGKILL)
        if not is_committed(self.task, str(self.id)):
            return False
        self._requeued = True
        state.task_ready(self)
        self.reject(requeue=True)
        return True

    def _end_process(self) -> None:
        # Only once: a second signal would end the process before the handler has cleaned up.
        self._stopping_pool.terminate_job(self.worker_pid, SIGTERM)


def apply_cancellation(app: Any, consumer: Any, message_id: str, running: bool) -> CancelAnswer:
    """Cancel a message in this worker; call it in the thread that consumes.

    Args:
        app: the application, an AgentApp.
        consumer: the worker's consumer.
        message_id: the message.
        running: whether a running handler is stopped too.
    """
    cancellations = cancellations_of(app)
    cancellations.add(message_id, running)
    request = state.requests.get(message_id)
    if not isinstance(request, AgentRequest):
        return CancelAnswer.BEGUN if cancellations.has_taken(message_id) else CancelAnswer.PROMISED
    if request.drop():
        return CancelAnswer.DROPPED
    if not running:
        return CancelAnswer.BEGUN
    if not request.stop(consumer.pool):
        return CancelAnswer.NOT_STOPPABLE
    if consumer.hub is not None and isinstance(consumer.pool, ProcessPool):
        request.check_process(consumer.pool, consumer.timer)
    return CancelAnswer.STOPPING


def stop_handler(pool: Any, message_ids: list[str]) -> None:
    """Stop the handlers of messages that run in this worker; call it from any thread.

    Args:
        pool: the worker's pool.
        message_ids: the messages; those that do not run here are skipped.
    """
    for message_id in message_ids:
        request = state.requests.get(message_id)
        if isinstance(request, AgentRequest) and request.taken:
            request.stop(pool)
