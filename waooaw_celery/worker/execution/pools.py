"""Celery's pools, in which nothing that goes wrong around a handler is lost with its thread or ends the worker.

Celery's tracing catches what a handler raises. It does not catch everything else: an errback that cannot be sent,
a hook that raises, a result backend that is away. In the thread pool such an error vanishes in a future that
nobody reads, and its message is held for ever. In the solo pool it ends the worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import bootsteps, current_app
from celery.concurrency.asynpool import AsynPool
from celery.concurrency.base import BasePool
from celery.concurrency.prefork import TaskPool as ProcessPool
from celery.exceptions import Retry
from celery.worker import state

from waooaw_celery.errors import HandlerExited
from waooaw_celery.worker.execution.interruptions import describe, ends_worker, is_green, limited
from waooaw_celery.worker.outcomes.follow_up_context import sending_follow_ups

logger = logging.getLogger(__name__)

#: How often, and every how many seconds, a prefork pool is looked after when one of its processes may have ended.
LOOKS, LOOK_SECONDS = 20, 0.05


class SafePool(bootsteps.Step):
    """Bootstep of the worker that has it use the pool that the user chose, made safe."""

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        # Celery makes all steps before it makes the pool.
        parent.pool_cls = safe_pool(parent.pool_cls)


@cache
def safe_pool(pool: type[BasePool]) -> type[BasePool]:
    """Return a subclass of a pool class in which every message that is begun comes to an end."""
    kind = _Processes if issubclass(pool, ProcessPool) else _Threads
    # Celery's banner shows the module's name.
    members: dict[str, Any] = {"__module__": pool.__module__, "__doc__": pool.__doc__}
    if issubclass(pool, ProcessPool) and pool.Pool is AsynPool:
        members["Pool"] = PromptProcessPool
    return type(pool.__name__, (kind, pool), members)


def run_trace(trace: Callable[..., Any], name: str, message_id: str, request: dict[str, Any], *body: Any) -> Any:
    """Run Celery's trace of a task, and let nothing but an ``Exception`` leave it, unless the worker is to end.

    Args:
        trace: Celery's function.
        name: of the task.
        message_id: its id.
        request: its headers, to which Celery adds its arguments.
        body: what else Celery's function takes.

    Raises:
        HandlerExited: something raised what is no Exception.
    """
    try:
        with sending_follow_ups(current_app.tasks.get(name), request):
            return trace(name, message_id, request, *body)
    except Exception as error:
        retry = retry_behind(error)
        if retry is None:
            raise
        # The next attempt is on its way: Celery publishes it before it stores that.
        return 1, ExceptionInfo((Retry, retry, retry.__traceback__)), 0.0
    except BaseException as error:
        if ends_worker(error) or is_green(error):
            raise
        raise HandlerExited(f"{name} ended with {describe(error)}") from error


def retry_behind(error: BaseException | None) -> Retry | None:
    """Return the ``Retry`` of a handler that was being dealt with when an error was raised, or None."""
    while error is not None and not isinstance(error, Retry):
        error = error.__context__
    return error


class PromptProcessPool(AsynPool):
    """The pool of processes, which notices within a moment that one of them is gone.

    The event loop hears of it when the process closes its last file. That is a moment before the process has
    ended: the pool looks once, sees a process that lives, and looks again at its next regular time, 5 s later.
    """

    _hub: Any = None
    _looks = 0

    def register_with_event_loop(self, hub: Any) -> None:
        """Note the event loop, whose timer says when to look again."""
        self._hub = hub
        super().register_with_event_loop(hub)

    @property
    def timers(self) -> dict[Any, float]:
        """What is done regularly: one look."""
        return {super().maintain_pool: 5.0}

    def maintain_pool(self) -> None:
        """Look for processes that have ended, now and again for a while, and start others in their place."""
        waits = self._looks > 0
        self._looks = LOOKS
        super().maintain_pool()
        if not waits and self._hub is not None:
            self._hub.call_later(LOOK_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._looks -= 1
        if self._looks > 0:
            self._hub.call_later(LOOK_SECONDS, self._look_again)
        super().maintain_pool()


class _Processes(BasePool):
    """A pool of processes, which reports itself what a process raises."""

    def apply_async(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        return super().apply_async(run_trace, (target, *args), kwargs, **options)


class _Threads(BasePool):
    """A pool that runs what it is given in the worker's own process: in threads, greenlets or the main thread."""

    def apply_async(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        job = _Job(options, options.get("timeout") or getattr(self, "timeout", None))
        watched = options | {
            "callback": job.end,
            "accept_callback": job.accept,
            "timeout_callback": job.time_out,
        }
        return super().apply_async(partial(job.run, target), args, kwargs, **watched)


class _Untraced:
    """The outcome of a message of which Celery's tracing raised an error."""

    def __init__(self, info: ExceptionInfo) -> None:
        self.info = info


class _Job:
    """One message in the pool.

    Args:
        options: what Celery gives the pool with it: bound methods of its request.
        limit: its hard time limit in seconds, where the pool keeps one.
    """

    def __init__(self, options: dict[str, Any], limit: float | None) -> None:
        self._options, self._limit = options, limit
        self._request = getattr(options["callback"], "__self__", None)

    def run(self, target: Callable[..., Any], *args: Any) -> Any:
        """Run the trace."""
        try:
            with limited(self._limit):
                return run_trace(target, *args)
        except Exception:  # noqa: BLE001 - the request logs it
            return _Untraced(ExceptionInfo())

    def end(self, outcome: Any) -> None:
        """Tell the request of the outcome."""
        if isinstance(outcome, _Untraced):
            self._call("error_callback", outcome.info)
        else:
            self._call("callback", outcome)

    def accept(self, *args: Any) -> None:
        """Tell the request that it is begun."""
        try:
            self._options["accept_callback"](*args)
        except Exception:
            logger.exception(
                "the beginning of %s was not noted; it is handled all the same",
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
                "the end of %s was not noted as usual: its message is acknowledged",
                self._request,
                extra={"action": "end_not_noted"},
            )
            settle(self._request)


def settle(request: Any) -> None:
    """Let a message go that has ended: free its slot and acknowledge it."""
    state.task_ready(request)
    try:
        request.acknowledge()
    except Exception:
        logger.exception("%s was not acknowledged", request, extra={"action": "not_acknowledged"})
