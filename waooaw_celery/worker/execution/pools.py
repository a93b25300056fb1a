"""Celery's pools, made safe: an error around a handler neither vanishes with its thread nor ends the worker.

Celery's trace catches what a handler raises. It does not catch other errors: an errback that cannot be sent, a
hook that raises, a result backend that does not answer. In the thread pool, such an error vanishes in a future
that nobody reads, and its message is never acknowledged. In the solo pool, it ends the worker.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import bootsteps, current_app, signals
from celery.concurrency.asynpool import AsynPool
from celery.concurrency.base import BasePool
from celery.concurrency.prefork import TaskPool as ProcessPool
from celery.exceptions import Retry
from celery.worker import state
from celery.worker.request import Request

from waooaw_celery.errors import HandlerExited
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.queues import takes_message
from waooaw_celery.wire.formats import decode_again
from waooaw_celery.worker.execution.deadline import allow_soft_limit, pool_options
from waooaw_celery.worker.execution.interruptions import describe, ends_worker, is_green, limited
from waooaw_celery.worker.outcomes.acknowledged_outcomes import (
    end_with_acknowledgement,
    ends_with_acknowledgement,
)
from waooaw_celery.worker.outcomes.follow_up_context import sending_follow_ups
from waooaw_celery.worker.scaling.process_pool import PromptProcessPool

logger = get_logger(__name__)


class SafePool(bootsteps.Step):
    """Bootstep of the worker that replaces the pool class with a safe one."""

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        from celery.apps.worker import Worker  # only a worker needs it

        super().__init__(parent, **kwargs)
        # Celery creates all steps before it creates the pool.
        parent.pool_cls = safe_pool(parent.pool_cls)
        if isinstance(parent, Worker):  # not a worker in the process of a test
            signals.worker_ready.connect(freeze_memory, dispatch_uid=f"{__name__}.freeze_memory")


def freeze_memory(**_: Any) -> None:
    """Have Python search no longer for garbage in what the worker needed to start: modules, tasks, settings."""
    gc.collect()
    gc.freeze()


@cache
def safe_pool(pool: type[BasePool]) -> type[BasePool]:
    """Return a subclass of a pool class in which every message that is started is also ended."""
    kind = _SafeProcessPool if issubclass(pool, ProcessPool) else _SafeThreadPool
    # Celery's banner shows the module's name.
    members: dict[str, Any] = {"__module__": pool.__module__, "__doc__": pool.__doc__}
    if issubclass(pool, ProcessPool) and pool.Pool is AsynPool:
        members["Pool"] = PromptProcessPool
    return type(pool.__name__, (kind, pool), members)


def run_trace(trace: Callable[..., Any], name: str, message_id: str, request: dict[str, Any], *body: Any) -> Any:
    """Run Celery's trace of a task. Only an ``Exception`` leaves it, unless the worker must end.

    Args:
        trace: Celery's function.
        name: name of the task.
        message_id: its id.
        request: its headers, to which Celery adds its arguments.
        body: the body of the message, its content type and content encoding, and further arguments.

    Raises:
        HandlerExited: something raised an exception that is no ``Exception``.
    """
    try:
        allow_soft_limit()
        with sending_follow_ups(current_app.tasks.get(name), request):
            return trace(name, message_id, request, *_decoded(*body))
    except Exception as error:
        retry = retry_behind(error)
        if retry is None:
            raise
        # The next attempt is published: Celery publishes it before it stores its state.
        return 1, ExceptionInfo((Retry, retry, retry.__traceback__)), 0.0
    except BaseException as error:
        if ends_worker(error) or is_green(error):
            raise
        raise HandlerExited(f"{name} ended with {describe(error)}") from error


def _decoded(body: Any, content_type: Any, content_encoding: Any, *further: Any) -> tuple[Any, ...]:
    """Return the arguments of Celery's trace with the body decoded; the trace itself would use Kombu's formats.

    The consumer has decoded it before, to check it.

    Args:
        body: the body of the task's message.
        content_type: its format; None: Celery has decoded it.
        content_encoding: its content encoding.
        further: the further arguments.

    Raises:
        DecodingFailed: it cannot be decoded.
    """
    packer = getattr(current_app, "packer", None)  # None: the current application is not an AgentApp
    if content_type is None or packer is None:
        return body, content_type, content_encoding, *further
    return decode_again(body, content_type, content_encoding, packer.caps), None, None, *further


def retry_behind(error: BaseException | None) -> Retry | None:
    """Return the ``Retry`` of a handler that was being handled when an error was raised, or None."""
    while error is not None and not isinstance(error, Retry):
        error = error.__context__
    return error


class _SafeProcessPool(BasePool):
    """A pool of processes, which itself reports what a process raises."""

    def apply_async(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        request = getattr(options.get("callback"), "__self__", None)
        options = pool_options(request, options, self.options)
        if isinstance(request, Request) and ends_with_acknowledgement(request):
            options = {**options, "callback": partial(_end, request, options["callback"])}
        return super().apply_async(run_trace, (target, *args), kwargs, **options)


def _end(request: Any, end_in_celery: Callable[[Any], object], outcome: Any) -> None:
    """End a message that a process of the pool has handled.

    Args:
        request: an AgentRequest, whose acknowledgement records the outcome.
        end_in_celery: Celery's callback.
        outcome: whether it failed, what it returned, and how long it took.
    """
    if not outcome[0]:
        end_with_acknowledgement(request)
    end_in_celery(outcome)


class _SafeThreadPool(BasePool):
    """A pool that runs handlers in the worker's own process: in threads, greenlets or the main thread."""

    def apply_async(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        job = _Job(options, options.get("timeout") or getattr(self, "timeout", None))
        safe_callbacks = {
            "callback": job.end,
            "accept_callback": job.accept,
            "timeout_callback": job.time_out,
        }
        return super().apply_async(
            partial(job.run, target), job.decoded(args), kwargs, **(options | safe_callbacks)
        )


class _TraceFailed:
    """The outcome of a message whose trace raised an error."""

    def __init__(self, info: ExceptionInfo) -> None:
        self.info = info


class _Job:
    """One message in the pool.

    Args:
        options: what Celery gives the pool: bound methods of the request, among others.
        limit: its hard time limit, in seconds, where the pool enforces one.
    """

    def __init__(self, options: dict[str, Any], limit: float | None) -> None:
        self._options, self._limit = options, limit
        self._request = getattr(options["callback"], "__self__", None)

    def decoded(self, args: Sequence[Any]) -> Sequence[Any]:
        """Return the arguments of the trace, with the body as the guard has decoded it, where that is safe.

        A handler that takes a Message gets a copy of its payload. Another one may change its arguments, which
        Celery still shows afterwards.

        Args:
            args: name of the task, its id, its headers, its body, content type and content encoding.
        """
        request: Any = self._request
        message = getattr(request, "message", None)
        if not getattr(message, "guarded", False) or not takes_message(getattr(request.task, "handler", "")):
            return args
        return *args[:3], request.message.payload, None, None

    def run(self, target: Callable[..., Any], *args: Any) -> Any:
        """Run the trace."""
        try:
            with limited(self._limit):
                return run_trace(target, *args)
        except Exception:  # noqa: BLE001 - the request logs it
            return _TraceFailed(ExceptionInfo())

    def end(self, outcome: Any) -> None:
        """Give the outcome to the request."""
        if isinstance(outcome, _TraceFailed):
            self._call("error_callback", outcome.info)
        else:
            self._call("callback", outcome)

    def accept(self, *args: Any) -> None:
        """Tell the request that the pool has accepted it."""
        try:
            self._options["accept_callback"](*args)
        except Exception:
            logger.exception(
                "Celery failed to record the start of %s; its handler runs anyway",
                self._request,
                extra={"action": "not_accepted"},
            )

    def time_out(self, *args: Any) -> None:
        """Tell the request that its time limit has passed."""
        self._call("timeout_callback", *args)

    def _call(self, callback: str, *args: Any) -> None:
        try:
            self._options[callback](*args)
        except Exception:
            logger.exception(
                "Celery failed to record the end of %s; its message is acknowledged",
                self._request,
                extra={"action": "end_not_noted"},
            )
            settle(self._request)


def settle(request: Any) -> None:
    """Settle a message that has ended: free its slot in the pool, and acknowledge it."""
    state.task_ready(request)
    try:
        request.acknowledge()
    except Exception:
        logger.exception(
            "%s could not be acknowledged, and may be redelivered", request, extra={"action": "not_acknowledged"}
        )
