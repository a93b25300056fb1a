"""Tells exceptions that are no ``Exception`` apart: raised by a handler, or by a pool to end the handler."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from billiard.common import terminate_handler_fired  # type: ignore[attr-defined]  # newer than its stubs
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.utils.serialization import UnpickleableExceptionWrapper
from celery.worker import state

#: Members of a group of exceptions that its text tells.
MAX_MEMBERS = 10
#: The hard time limit, in seconds, at which a green pool ends the handler that runs here.
_time_limit: ContextVar[float | None] = ContextVar("waooaw_time_limit", default=None)


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Note the hard time limit that the pool enforces in this block.

    Args:
        seconds: the limit; None: there is no limit.
    """
    token = _time_limit.set(seconds)
    try:
        yield
    finally:
        _time_limit.reset(token)


def is_green(error: BaseException) -> bool:
    """Return whether gevent or eventlet ends a greenlet with this exception: it was killed, or timed out."""
    kinds = [
        getattr(sys.modules.get(module), name, None)
        for module, name in (("greenlet", "GreenletExit"), ("gevent", "Timeout"), ("eventlet", "Timeout"))
    ]
    return isinstance(error, tuple(kind for kind in kinds if isinstance(kind, type)))


def ends_worker(error: BaseException) -> bool:
    """Return whether this exception was raised because the process or the worker must end.

    Celery raises ``WorkerShutdown`` and ``WorkerTerminate`` only after it has noted that the worker is to stop. At
    any other time, the handler's own code has raised them.
    """
    if terminate_handler_fired():  # a process of the prefork pool got SIGTERM
        return True
    is_stopping = any(
        flag is not None and flag is not False for flag in (state.should_stop, state.should_terminate)
    )
    return is_stopping and isinstance(error, WorkerShutdown | WorkerTerminate)


def ends_greenlet(error: BaseException, message_id: str) -> bool:
    """Return whether a green pool ends a handler with this exception: its message was revoked, or it timed out.

    Args:
        error: what was raised in the handler.
        message_id: id of its message.
    """
    if not is_green(error):
        return False
    if type(error).__name__ == "Timeout":
        return getattr(error, "seconds", None) == _time_limit.get()
    # Celery removes a message that it revokes or cancels just after it has told the pool.
    return message_id not in state.requests or state.should_terminate is not None


def describe(error: BaseException) -> str:
    """Return the name and the text of an exception, in one line; those of its members too if it is a group."""
    text = _text_of_group(error) if isinstance(error, BaseExceptionGroup) else str(error)
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def portable_group(group: ExceptionGroup[Exception]) -> UnpickleableExceptionWrapper:
    """Return a group of exceptions in the form in which Celery carries exceptions that it cannot rebuild.

    Its text tells the members; the text of a group is only their number.
    """
    text = _text_of_group(group)
    return UnpickleableExceptionWrapper(type(group).__module__, type(group).__name__, (text,), text)


def _text_of_group(group: BaseExceptionGroup[BaseException]) -> str:
    shown = [describe(each) for each in group.exceptions[:MAX_MEMBERS]]
    more = len(group.exceptions) - len(shown)
    return f"{group}: {'; '.join(shown)}{f'; and {more} more' if more else ''}"
