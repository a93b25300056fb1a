"""What Celery does for a message after its handler has ended, where Celery's own task stack is empty."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery._state import get_current_worker_task
from celery.app.task import Context

#: The message that is traced or ended: its task, its request, and the thread (or greenlet) that does it.
_ending: ContextVar[tuple[Any, Any, int] | None] = ContextVar("waooaw_ending", default=None)

#: Whether what is sent here was kept before, since it could not be sent when a handler had ended.
_following: ContextVar[bool] = ContextVar("waooaw_following", default=False)


@contextmanager
def resending_follow_up() -> Iterator[None]:
    """Let what is sent in this block count as what it was when it was kept: a follow-up."""
    token = _following.set(True)
    try:
        yield
    finally:
        _following.reset(token)


def is_resent_follow_up() -> bool:
    """Whether what is sent here was kept before."""
    return _following.get()


@contextmanager
def sending_follow_ups(task: Any, request: Mapping[str, Any] | Context) -> Iterator[None]:
    """Let what is sent in this block, while no handler runs, count as a follow-up of a message.

    Celery sends errbacks, callbacks and the next step of a chain. It does so in the trace of the task, in a part
    where it has removed the task from its stack, and in the worker's main process, when a pool process is lost.

    Args:
        task: the message's task.
        request: its request; Celery may still add to it.
    """
    token = _ending.set((task, request, threading.get_ident()))
    try:
        yield
    finally:
        _ending.reset(token)


def message_that_ended() -> tuple[Any, Context] | None:
    """Return the task and the request of the message whose follow-ups are sent here, or None.

    None also while a handler runs, and in a thread that only inherited the context of another.
    """
    known = _ending.get()
    if known is None or known[2] != threading.get_ident() or get_current_worker_task() is not None:
        return None
    task, request, _ = known
    return task, request if isinstance(request, Context) else Context(request, called_directly=False)
