"""Marks code that sends follow-ups of a message, where Celery's own task stack is empty."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery._state import get_current_worker_task
from celery.app.task import Context

#: The message whose follow-ups are sent: its task, its request, and the thread or greenlet that sends them.
_ended_message: ContextVar[tuple[Any, Any, int] | None] = ContextVar("waooaw_ended_message", default=None)

#: Whether a follow-up is sent here that could not be sent when its handler ended.
_is_resending: ContextVar[bool] = ContextVar("waooaw_is_resending", default=False)


@contextmanager
def resending_follow_up() -> Iterator[None]:
    """Let messages that are sent in this block count as follow-ups."""
    token = _is_resending.set(True)
    try:
        yield
    finally:
        _is_resending.reset(token)


def is_resent_follow_up() -> bool:
    """Return whether a follow-up is sent here that could not be sent when its handler ended."""
    return _is_resending.get()


@contextmanager
def sending_follow_ups(task: Any, request: Mapping[str, Any] | Context) -> Iterator[None]:
    """Let tasks that are sent in this block, while no handler runs, count as follow-ups of a message.

    Celery sends errbacks, callbacks and the next step of a chain. It does so in the trace of the task, after it
    has removed the task from its stack, and in the worker's main process when a process of the pool is lost.

    Args:
        task: the message's task.
        request: its request; Celery may still add to it.
    """
    token = _ended_message.set((task, request, threading.get_ident()))
    try:
        yield
    finally:
        _ended_message.reset(token)


def message_that_ended() -> tuple[Any, Context] | None:
    """Return the task and the request of the message whose follow-ups are sent here, or None.

    It is None also while a handler runs, and in a thread that only inherited the context of another.
    """
    ended = _ended_message.get()
    if ended is None or ended[2] != threading.get_ident() or get_current_worker_task() is not None:
        return None
    task, request, _ = ended
    return task, request if isinstance(request, Context) else Context(request, called_directly=False)
