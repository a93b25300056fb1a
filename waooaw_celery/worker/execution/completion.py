"""Completes what a handler returns: awaits a coroutine on the event loop, and consumes a generator."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

from billiard import current_process
from celery.app.task import Context
from celery.exceptions import Ignore

from waooaw_celery.worker.attempt import attempt_of
from waooaw_celery.worker.cancellation import CANCELLED, cancellations_of
from waooaw_celery.worker.execution.deadline import check_deadline, seconds_left, soft_limit_within
from waooaw_celery.worker.execution.django_connections import django_is_used, with_own_connections
from waooaw_celery.worker.execution.event_loop import HandlerCancelled, handler_event_loop
from waooaw_celery.worker.execution.streaming import StreamWriter, consume_async_generator, consume_generator
from waooaw_celery.worker.outcomes.sent_parts import sent_parts

#: The handler whose coroutine runs, and its request. Celery keeps both by thread, and coroutines share a thread.
running_coroutine: ContextVar[tuple[Any, Context] | None] = ContextVar("waooaw_running_coroutine", default=None)


def complete(task: Any, returned: Any) -> Any:
    """Return the result of a handler: await the coroutine, or consume the generator, that it returned.

    A handler that is called directly, as in a unit test, leaves both to its caller.

    Args:
        task: the handler, an AgentTask.
        returned: what it returned.

    Raises:
        Ignore: the message was cancelled, and its handler was stopped.
        DeadlineExceeded: the caller no longer waits, and the generator was stopped between two parts.
    """
    if not is_pending(returned):
        return returned
    # The request is never a local variable of these frames: a report of an error would show its arguments.
    if task.request.called_directly:
        return returned
    is_cancelled = partial(cancellations_of(task.app).stops, str(task.request.id))
    try:
        if inspect.isgenerator(returned):
            return consume_generator(returned, _stream_writer(task, task.request), partial(_stops, task))
        if inspect.isasyncgen(returned):
            returned = consume_async_generator(returned, _stream_writer(task, task.request))
        return _await(task, returned, is_cancelled)
    except HandlerCancelled as error:
        attempt_of(task.request).is_stopped = True
        raise Ignore(CANCELLED) from error


def is_pending(returned: Any) -> bool:
    """Return whether what a handler returned is a coroutine or a generator: it has not run yet."""
    return inspect.iscoroutine(returned) or inspect.isgenerator(returned) or inspect.isasyncgen(returned)


def _stops(task: Any) -> bool:
    """Return whether a generator is to be stopped because its message was cancelled.

    Raises:
        DeadlineExceeded: its caller no longer waits.
    """
    check_deadline(task, task.request)
    return cancellations_of(task.app).stops(str(task.request.id))


def _stream_writer(task: Any, request: Context) -> StreamWriter:
    call = task.call
    streamed = call is not None and call.stream
    sent = sent_parts(task.app) if streamed else None
    attempt_of(request).sent_parts = sent
    return StreamWriter(lambda: task.backend, request, streamed, None if sent is None else sent.add)


def _await(task: Any, coroutine: Any, is_cancelled: Callable[[], bool]) -> Any:
    """Run a coroutine on the event loop of the process, and wait for its result."""
    token = running_coroutine.set((task, task.request))
    if django_is_used(task.app):
        coroutine = with_own_connections(coroutine)
    try:
        event_loop = handler_event_loop(task.app.settings.stall_seconds)
        limits = _time_limits(task, task.request)
        return event_loop.run(str(task.request.id), coroutine, *limits, cancelled=is_cancelled)
    finally:
        running_coroutine.reset(token)


def _time_limits(task: Any, request: Context) -> tuple[float | None, float | None]:
    """Return the soft and the hard time limit, in seconds, where Celery's pool does not enforce them."""
    if current_process().name != "MainProcess":  # the prefork pool does
        return None, None
    hard, soft = request.timelimit or (None, None)
    soft, hard = soft or task.soft_time_limit, hard or task.time_limit
    return soft_limit_within(seconds_left(task, request), soft, hard), hard


def as_plain_function(function: Callable[..., Any], bind: bool) -> Callable[..., Any]:
    """Return a plain function, bound to its task, as which Celery runs an ``async def`` or a generator.

    Args:
        function: the handler as it was written.
        bind: whether it takes its task as first argument.
    """

    @wraps(function)
    def run(task: Any, /, *args: Any, **kwargs: Any) -> Any:
        returned = function(task, *args, **kwargs) if bind else function(*args, **kwargs)
        del args, kwargs  # a report of an error shows the local variables of each frame
        return complete(task, returned)

    own = inspect.signature(function)
    name = "task"
    while name in own.parameters:
        name += "_"
    first = () if bind else (inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY),)
    # Celery checks the arguments of a call against this signature.
    run.__signature__ = own.replace(parameters=(*first, *own.parameters.values()))  # type: ignore[attr-defined]
    return run
