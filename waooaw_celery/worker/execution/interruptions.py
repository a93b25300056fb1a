"""Exceptions that are no Exception: those of a handler's own code, and those by which a pool ends a handler."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from billiard.common import terminate_handler_fired  # type: ignore[attr-defined]  # newer than its stubs
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker import state

#: The hard time limit, in seconds, by which a green pool ends the handler that runs here.
_time_limit: ContextVar[float | None] = ContextVar("waooaw_time_limit", default=None)


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Note the hard time limit, in seconds, that the pool keeps in this block; None: no limit."""
    token = _time_limit.set(seconds)
    try:
        yield
    finally:
        _time_limit.reset(token)


def is_green(error: BaseException) -> bool:
    """Whether this is an exception by which gevent or eventlet ends a greenlet: killed, or at its time limit."""
    kinds = [
        getattr(sys.modules.get(module), name, None)
        for module, name in (("greenlet", "GreenletExit"), ("gevent", "Timeout"), ("eventlet", "Timeout"))
    ]
    return isinstance(error, tuple(kind for kind in kinds if isinstance(kind, type)))


def ends_worker(error: BaseException) -> bool:
    """Whether an exception came into this thread since its process or worker is told to end.

    Celery raises ``WorkerShutdown`` and ``WorkerTerminate`` only after it has noted that the worker is to stop.
    Raised by a handler's own code at another time, they are the handler's failure.
    """
    if terminate_handler_fired():  # a process of the prefork pool got SIGTERM
        return True
    told = any(value is not None and value is not False for value in (state.should_stop, state.should_terminate))
    return told and isinstance(error, WorkerShutdown | WorkerTerminate)


def ends_greenlet(error: BaseException, message_id: str) -> bool:
    """Whether a green pool ends the handler of a message by this exception: it was revoked, or ran too long."""
    if not is_green(error):
        return False
    if type(error).__name__ == "Timeout":
        return getattr(error, "seconds", None) == _time_limit.get()
    # Celery announces the end of a message that it revokes or cancels just after it has told the pool.
    return message_id not in state.requests or state.should_terminate is not None


def describe(error: BaseException) -> str:
    """Return the name and the text of an exception, in one line."""
    text = str(error)
    name = type(error).__name__
    return f"{name}: {text}" if text else name
