"""Writes records of a log as JSON: one object on one line, with what is known of the message that is handled."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from waooaw_celery.messages.log.loggers import ESCAPES

#: What a record may say of a message or a workflow, in the order in which it is written. Nothing else that code
#: adds to a record (``extra=``) is written: it could quote a payload, as the records of Celery do.
FACTS = (
    "action",
    "message_id",
    "conversation_id",
    "correlation_id",
    "agent",
    "handler",
    "attempt",
    "workflow_id",
    "trace_id",
    "span_id",
)
#: The facts that name what a record is about. Where a record names another message or agent than the one that is
#: handled, the facts of the latter are left out.
_SUBJECTS = ("message_id", "agent")

#: Facts about the code that runs here and is no handler, such as the id of its workflow.
_here: ContextVar[Mapping[str, Any]] = ContextVar("waooaw_log_facts", default=MappingProxyType({}))


def note_facts(**facts: Any) -> None:
    """Add facts to all records of the current context: of this coroutine, and of what it starts from now on.

    Args:
        facts: names of ``FACTS`` and their values.

    Example:
        >>> note_facts(workflow_id=run.workflow_id)
    """
    _here.set({**_here.get(), **facts})


class JsonFormatter(logging.Formatter):
    """Writes each record as one line of JSON, in ASCII. It never raises.

    The keys ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, ``pid`` and ``process`` are always
    there. The facts that are known and ``exception`` follow.

    Args:
        facts: returns what is known of the message that a record is about; None: nothing is.

    Example:
        >>> handler = logging.StreamHandler()
        >>> handler.setFormatter(JsonFormatter())
    """

    def __init__(self, facts: Callable[[logging.LogRecord], Mapping[str, Any]] | None = None) -> None:
        super().__init__()
        self._facts = facts

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line of JSON."""
        try:
            ESCAPES.filter(record)
            written = self._basic(record, record.getMessage()) | self._known(record)
            if record.exc_text:
                written["exception"] = record.exc_text
            if record.stack_info:
                written["stack"] = record.stack_info
            return json.dumps(written)
        except Exception as error:  # noqa: BLE001 - a formatter that raises would fail the code that logs
            text = f"a record of {record.name} cannot be written: {type(error).__name__}"
            return json.dumps(self._basic(record, text))

    def _basic(self, record: logging.LogRecord, message: str) -> dict[str, Any]:
        return {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
            "pid": record.process,
            "process": record.processName,
        }

    def _known(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the facts about a record: its own, and those of what runs here, if it is about the same."""
        own = {name: getattr(record, name) for name in FACTS if getattr(record, name, None) is not None}
        found = dict(_here.get())
        if self._facts is not None:
            found |= self._facts(record)
        found = {name: value for name, value in found.items() if name in FACTS and value is not None}
        if any(name in own and own[name] != found.get(name, own[name]) for name in _SUBJECTS):
            found = {}
        found |= own
        found |= _span()
        return {name: _plain(found[name]) for name in FACTS if name in found}


def _span() -> dict[str, str]:
    """Return the ids of the current span, if this process has loaded OpenTelemetry and a span is current."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def _plain(value: Any) -> Any:
    """Return a value that JSON has; every other one as its repr."""
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return repr(value)
