"""The setting ``waooaw_log_format``: whether the log of a worker, or of beat, is text or lines of JSON."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from celery import current_app
from celery.utils.log import get_multiprocessing_logger

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.log.loggers import escape_log
from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.monitoring.json_log import JsonFormatter
from waooaw_celery.settings import LogFormat
from waooaw_celery.worker.attempt import attempt_of
from waooaw_celery.worker.current_task import current_task
from waooaw_celery.worker.task import AgentTask


def set_log_format(logger: logging.Logger, **_: object) -> None:
    """Let the handlers of a logger write JSON, if the current application has ``waooaw_log_format = "json"``.

    Args:
        logger: a logger that has its handlers already. Celery's signals of a logger's setup name it.
    """
    app: Any = current_app
    try:
        wanted = getattr(app, "settings", None)
    except ConfigurationError:  # the worker's check reports it in a moment
        return
    if wanted is None or wanted.log_format is not LogFormat.JSON:
        return
    of_pool: Any = get_multiprocessing_logger()  # the pool reports lost processes there
    for each in (logger, of_pool):
        escape_log(each)
        write_json(each)


def write_json(logger: logging.Logger) -> None:
    """Let the handlers of a logger write JSON, with the message that is being handled.

    For projects that set up logging themselves (Celery's signal ``setup_logging``).

    Args:
        logger: a logger that has its handlers already.

    Example:
        >>> write_json(logging.getLogger())
    """
    for handler in logger.handlers:
        handler.setFormatter(JsonFormatter(facts_of))


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what is known of the message that a record is about, by the names of ``json_log.FACTS``.

    That is the message which this thread or coroutine handles, or the one that a record of Celery names.

    Args:
        record: the record.
    """
    task = current_task()
    if task is None or task.request.id is None:  # a unit test calls the handler, or no handler runs
        return _named_by_celery(record)
    request = task.request
    facts: dict[str, Any] = {"agent": task.agent, "handler": task.handler}
    if attempt_of(request).is_batch:
        return facts
    # The headers, because the message itself may be large, or invalid.
    envelope = (request.headers or {}).get(ENVELOPE_HEADER)
    correlation_id = envelope.get("correlation_id") if isinstance(envelope, Mapping) else None
    return facts | {
        "message_id": str(request.id),
        "conversation_id": request.root_id or request.id,
        "correlation_id": correlation_id or request.id,
        "attempt": request.retries + 1,
    }


def _named_by_celery(record: logging.LogRecord) -> dict[str, Any]:
    """Return the message that Celery names in its records "received", "succeeded", "raised", …"""
    data = getattr(record, "data", None)
    if not record.name.startswith("celery.") or not isinstance(data, dict):
        return {}
    task: Any = current_app.tasks.get(str(data.get("name")))
    if not isinstance(task, AgentTask):
        return {}
    return {"message_id": data.get("id"), "agent": task.agent, "handler": task.handler}
