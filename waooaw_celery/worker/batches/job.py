"""A batch of messages in the pool: one job, whose end is the end of each of its messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from uuid import uuid4

from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, WorkerLostError
from celery.exceptions import TaskRevokedError
from celery.worker import state

from waooaw_celery.messages.log.hiding import hidden_error
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.worker.batches.trace import Raised, trace_batch
from waooaw_celery.worker.execution.pools import settle
from waooaw_celery.worker.execution.running_requests import Place
from waooaw_celery.worker.outcomes.hidden_payloads import hides_payloads

logger = get_logger(__name__)


class JobWatcher(Protocol):
    """What is told about batches in the pool. A thread of the pool may tell it."""

    def has_begun(self, job: BatchJob) -> None:
        """Note that the pool has begun a batch."""

    def has_ended(self, job: BatchJob) -> None:
        """Note that all messages of a batch have ended."""


class BatchJob:
    """A batch that is given to the pool. It takes one slot of the pool, as a single message does.

    Args:
        task: the handler, a BatchTask.
        requests: the requests of its messages, BatchRequest.
        watcher: is told when the pool begins it, and once when all of its messages have ended; None: nobody is.

    Attributes:
        id: the id under which the pool knows it.
        size: how many messages it was given.
        request_dict: what the pool reads of a single message's request; a batch has no caller that waits.
    """

    request_dict: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it

    def __init__(self, task: Any, requests: Sequence[Any], watcher: JobWatcher | None = None) -> None:
        self.id = f"batch-{uuid4()}"
        self._task, self._watcher = task, watcher
        self._requests: list[Any] = list(requests)
        self.size = self._open = len(self._requests)
        for request in self._requests:
            request.job = self

    @property
    def unsettled(self) -> int:
        """How many of its messages have not ended, and are not acknowledged before they are handled."""
        return self._open if self._task.acks_late else 0

    def execute_using_pool(self, pool: Any) -> Any:
        """Give its messages to the pool, without those that were revoked or have expired.

        Args:
            pool: the worker's pool.

        Raises:
            TaskRevokedError: none is left.
        """
        self._requests = [request for request in self._requests if not request.revoked()]
        self._open = len(self._requests)
        if not self._requests:
            self._report_end()
            raise TaskRevokedError(self.id)
        hard, soft = self._limits()
        result = pool.apply_async(
            trace_batch,
            args=(
                *(self._task.name, self.id, self.request_dict),
                *([request.packed() for request in self._requests], None, None),
            ),
            accept_callback=self.on_accepted,
            timeout_callback=self.on_timeout,
            callback=self.on_success,
            error_callback=self.on_failure,
            soft_timeout=soft,
            timeout=hard,
            correlation_id=self.id,
        )
        for request in self._requests:
            request.note_result(result)
        return result

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """Note for each message that the pool has begun."""
        place = Place.here()
        for request in self._requests:
            request.on_accepted(pid, time_accepted)
            request.place = place  # the same for all: otherwise only the last one would count as running
        if self._watcher is not None:
            self._watcher.has_begun(self)

    def on_success(self, outcome: Any, **_: Any) -> None:
        """End each message as its own trace ended.

        Args:
            outcome: what ``trace_batch`` returned.
        """
        failed, results, _ = outcome
        if failed:
            self.on_failure(results)
            return
        for request, result in zip(self._requests, results, strict=True):
            if isinstance(result, Raised):
                self._end(request, request.on_failure, result.info)
            else:
                self._end(request, request.on_success, result)

    def on_failure(self, exc_info: Any, **_: Any) -> None:
        """End each message whose batch lost its process, or was never run."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        ids = [str(each.id) for each in self._requests if _is_known(each)]
        if ids:  # the pool reports a hard time limit twice
            logger.error(
                "a batch of %s ended without its outcomes: %s; its messages are %s",
                self._task.name,
                hidden_error(error) if hides_payloads(self._task.app) else repr(error),
                ", ".join(ids),
                extra={"action": "batch_lost"},
            )
        lost = _lost_with_another() if isinstance(error, Terminated) else exc_info
        for request in self._requests:
            self._end(request, request.on_failure, exc_info if request.is_terminated else lost)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Log that the soft time limit has passed, or end each message at the hard one."""
        for request in self._requests:
            if soft:
                request.on_timeout(soft, timeout)
            else:
                self._end(request, request.on_timeout, soft, timeout)

    def acknowledge(self) -> None:
        """Acknowledge what is not acknowledged: the pool could not report the end of the batch."""
        for request in self._requests:
            settle(request)
        self._open = 0
        self._report_end()

    def _end(self, request: Any, end: Callable[..., object], *args: Any) -> None:
        self._open -= 1  # first: once it is acknowledged, it does not count as held any more
        request.job = None
        try:
            end(*args)
        except Exception:
            logger.exception(
                "Celery failed to record the end of %s; its message is acknowledged",
                request,
                extra={"action": "end_not_noted", "message_id": request.id},
            )
            settle(request)
        finally:
            if self._open == 0:
                self._report_end()

    def _report_end(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.has_ended(self)

    def _limits(self) -> tuple[float | None, float | None]:
        """Return the hard and the soft time limit, in seconds: the shortest of all messages and of the handler."""
        own = [request.time_limits for request in self._requests]
        hard = [limits[0] or self._task.time_limit for limits in own]
        soft = [limits[1] or self._task.soft_time_limit for limits in own]
        return _shortest(hard), _shortest(soft)


def _is_known(request: Any) -> bool:
    """Return whether Celery has not ended a request, nor forgotten it with a lost connection."""
    return request in state.reserved_requests


def _shortest(limits: Sequence[float | None]) -> float | None:
    known = [limit for limit in limits if limit]
    return min(known) if known else None


def _lost_with_another() -> ExceptionInfo:
    """Return the error of a message whose process was ended because of another message of its batch."""
    try:
        raise WorkerLostError("its process was ended because of another message of its batch")
    except WorkerLostError:
        return ExceptionInfo()
