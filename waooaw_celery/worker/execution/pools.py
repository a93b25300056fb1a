"""Celery's pools, made safe: an error around a handler neither vanishes with its thread nor ends the worker.

Celery's trace catches what a handler raises. It does not catch other errors: an errback that cannot be sent, a
hook that raises, a result backend that does not answer. In the thread pool, such an error vanishes in a future
that nobody reads, and its message is never acknowledged. In the solo pool, it ends the worker.
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

#: How often, and every how many seconds, a prefork pool is checked when one of its processes may have ended.
CHECKS, CHECK_SECONDS = 20, 0.05


class SafePool(bootsteps.Step):
    """Bootstep of the worker that replaces the pool class with a safe one."""

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        # Celery creates all steps before it creates the pool.
        parent.pool_cls = safe_pool(parent.pool_cls)


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
        body: the further arguments of Celery's function.

    Raises:
        HandlerExited: something raised an exception that is no ``Exception``.
    """
    try:
        with sending_follow_ups(current_app.tasks.get(name), request):
            return trace(name, message_id, request, *body)
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


def retry_behind(error: BaseException | None) -> Retry | None:
    """Return the ``Retry`` of a handler that was being handled when an error was raised, or None."""
    while error is not None and not isinstance(error, Retry):
        error = error.__context__
    return error


class PromptProcessPool(AsynPool):
    """A process pool that replaces a dead process at once.

    The event loop hears when a process closes its last file, just before it ends. Celery's pool checks once, finds
    a living process, and checks again at its next regular time, up to 5 s later. This one checks repeatedly.
    """

    _hub: Any = None
    _checks_left = 0

    def register_with_event_loop(self, hub: Any) -> None:
        """Note the event loop, whose timer calls the further checks."""
        self._hub = hub
        super().register_with_event_loop(hub)

    @property
    def timers(self) -> dict[Any, float]:
        """The functions that the event loop calls regularly, with the seconds between two calls: one check."""
        return {super().maintain_pool: 5.0}

    def maintain_pool(self) -> None:
        """Replace processes that have ended, now and a few times more."""
        is_checking = self._checks_left > 0
        self._checks_left = CHECKS
        super().maintain_pool()
        if not is_checking and self._hub is not None:
            self._hub.call_later(CHECK_SECONDS, self._check_again)

    def _check_again(self) -> None:
        self._checks_left -= 1
        if self._checks_left > 0:
            self._hub.call_later(CHECK_SECONDS, self._check_again)
        super().maintain_pool()


class _SafeProcessPool(BasePool):
    """A pool of processes, which itself reports what a process raises."""

    def apply_async(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        return super().apply_async(run_trace, (target, *args), kwargs, **options)


class _SafeThreadPool(BasePool):
    """A pool that runs handlers in the worker's own process: in threads, greenlets or the main thread."""

    def apply_async(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        job = _Job(options, options.get("timeout") or getattr(self, "timeout", None))
        safe_callbacks = {
            "callback": job.end,
            "accept_callback": job.accept,
            "timeout_callback": job.time_out,
        }
        return super().apply_async(partial(job.run, target), args, kwargs, **(options | safe_callbacks))


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
                "Celery could not note the start of %s; it is handled all the same",
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
                "Celery could not end %s: its message is acknowledged",
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
        logger.exception("%s was not acknowledged", request, extra={"action": "not_acknowledged"})
