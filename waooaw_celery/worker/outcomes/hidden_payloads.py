"""Hides arguments, results and the texts of errors of handlers in Celery's log, events and remote control.

The setting ``waooaw_log_payloads`` shows them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery import Task, current_app, current_task
from celery.worker.request import Request

from waooaw_celery.messages.log.hiding import HIDDEN, hidden_error, hidden_traceback

#: The handler whose end Celery reports in the worker's main process.
_reported: ContextVar[Any] = ContextVar("waooaw_reported", default=None)
#: The loggers with which Celery reports how tasks end, and what it gives to the pool.
_LOGGERS = ("celery.app.trace", "celery.worker.request", "celery.pool")
_POOL_LOGGER = "celery.pool"
#: The parts of Celery's records that quote a message or its outcome.
_HIDDEN_PARTS = ("args", "kwargs", "return_value", "traceback")
#: With this size, Celery's text of any result is ``, ...``.
_NO_RESULT = 0
#: Celery's name for the group of its events about tasks.
_TASK_EVENTS = "task"
_HIDDEN_FIELDS = (*_HIDDEN_PARTS, "result")


def hides_payloads(app: Any) -> bool:
    """Return whether an application hides payloads in logs and events; other applications have no such setting."""
    settings = getattr(app, "settings", None)
    return settings is not None and not settings.log_payloads


def hide_in_log() -> None:
    """Hide payloads in Celery's own records. A second call changes nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_filter)


@contextmanager
def reporting(task: Any) -> Iterator[None]:
    """Hide what Celery logs of a handler while the block runs, outside of the handler's own process."""
    token = _reported.set(task)
    try:
        yield
    finally:
        _reported.reset(token)


class ShownResult:
    """The attribute ``resultrepr_maxsize`` of a task: how many characters of its result Celery shows."""

    def __get__(self, task: Any, kind: Any = None) -> int:
        return _NO_RESULT if task is not None and hides_payloads(task.app) else Task.resultrepr_maxsize


class HidingRequest(Request):
    """A request that hides its payload, its result and its error in Celery's events and in remote control.

    Attributes:
        ended_by: the error that ended it, or None.
    """

    ended_by: BaseException | None = None

    @property
    def argsrepr(self) -> Any:
        """The arguments, as events and logs show them. A message of plain Celery names them in a header."""
        return HIDDEN if self._is_hidden else super().argsrepr

    @property
    def kwargsrepr(self) -> Any:
        """The keyword arguments, as events and logs show them."""
        return HIDDEN if self._is_hidden else super().kwargsrepr

    def info(self, safe: bool = False) -> Any:
        """Return what ``celery inspect active`` shows."""
        facts = super().info(safe=safe)
        return facts | {"args": HIDDEN, "kwargs": HIDDEN} if self._is_hidden else facts

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Send an event of Celery, such as ``task-failed``, without what quotes the message."""
        eventer = self.eventer
        # Without ``-E``, the dispatcher sends the events of workers only.
        if not (eventer and eventer.enabled) or (eventer.groups and _TASK_EVENTS not in eventer.groups):
            return
        if self._is_hidden:
            fields |= {name: HIDDEN for name in _HIDDEN_FIELDS if name in fields}
            if "exception" in fields:
                fields["exception"] = hidden_error(self.ended_by)
        super().send_event(type, **fields)

    @property
    def _is_hidden(self) -> bool:
        return hides_payloads(self.app)


class _PayloadFilter(logging.Filter):
    """Hides what quotes a message of an agent in a record of Celery."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Hide it, and return True."""
        if record.name == _POOL_LOGGER:
            if hides_payloads(current_app):
                record.msg, record.args = record.getMessage().partition(" (args:")[0], None
        elif _is_of_an_agent():
            _hide(record)
        return True


def _is_of_an_agent() -> bool:
    task: Any = _reported.get() or current_task
    return bool(task) and hasattr(task, "agent") and hides_payloads(task.app)


def _hide(record: logging.LogRecord) -> None:
    info = record.exc_info
    error = info[1] if info and info[1] is not None else sys.exc_info()[1]
    args: Any = record.args
    if isinstance(args, dict):
        hidden = args | {name: HIDDEN for name in _HIDDEN_PARTS if name in args}
        if "exc" in args:
            hidden["exc"] = hidden_error(error)
        record.args = hidden
        if hasattr(record, "data"):  # Celery's copy of it for other handlers
            record.data = hidden
    elif isinstance(args, tuple):
        record.args = tuple(hidden_error(each) if isinstance(each, BaseException) else each for each in args)
    if info and info[1] is not None:
        record.exc_text, record.exc_info = hidden_traceback(info[1]), None


#: The one filter, so that adding it twice changes nothing.
_filter = _PayloadFilter()
