"""What came of a request, read from what the result backend says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from waooaw_celery.errors import Cancelled, Expired, RemoteError, UnknownMethod, WaooawError
from waooaw_celery.messages.validation import JSON
from waooaw_celery.results.collector import ResultMessage
from waooaw_celery.worker.cancellation import CANCELLED
from waooaw_celery.worker.signals import IGNORED, class_name

#: Celery's states of a task that brought no result.
_FAILED = frozenset({"FAILURE", "RETRY", "REVOKED"})
#: What Celery, or we, say of a task that was revoked without having expired.
_CANCELLED = frozenset({CANCELLED, "revoked", "terminated"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What came of a request.

    Attributes:
        agent: who was asked.
        message_id: id of the request, and its correlation id.
        result: the answer, a JSON value; None when there is an error.
        error: RemoteError, RequestTimeout, Expired, Cancelled, UnknownMethod or BackendUnavailable; None when it
            went well.
        seconds: how long the caller waited.
    """

    agent: str
    message_id: str
    result: JSON
    error: WaooawError | None
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return self.error is None


def response_of_reply(agent: str, said: Mapping[str, Any], now: datetime) -> Response:
    """Return the response that came as a message.

    Args:
        agent: who was asked.
        said: what its worker sent.
        now: the time by the reference clock.
    """
    message_id, error = said["message_id"], said["error"]
    asked_at = datetime.fromisoformat(said["asked_at"])
    problem: WaooawError | None = None
    if error is not None and error["type"] == "Expired":
        problem = Expired(f"{agent!r} dropped request {message_id}: its time was over before it was begun")
    elif error is not None and error["type"] == "Cancelled":
        problem = _cancelled(agent, message_id)
    elif error is not None:
        problem = RemoteError(agent, error["type"], error["message"], error["traceback"])
    return Response(
        agent=agent,
        message_id=message_id,
        result=said["result"],
        error=problem,
        seconds=(now - asked_at).total_seconds(),
    )


def result_of(response: Response) -> JSON:
    """Return the result, or raise the error, of a response."""
    if response.error is not None:
        raise response.error
    return response.result


def outcome_of(agent: str, message_id: str, answered: ResultMessage) -> tuple[JSON, WaooawError | None]:
    """Tell what the backend's record of a request means: its result, or its error."""
    state, exception, traceback = answered
    if state not in _FAILED:
        return exception, None
    name, text = _class_and_text(exception, traceback or "")
    if state == "REVOKED" and str(exception) == "expired":
        return None, Expired(f"{agent!r} dropped request {message_id}: its time was over before it was begun")
    if state == "REVOKED" and str(exception) in _CANCELLED:
        return None, _cancelled(agent, message_id)
    if state == "REVOKED" and text.startswith(IGNORED):
        return None, RemoteError(agent, "Ignore", text.removeprefix(IGNORED))
    if name == "NotRegistered":
        return None, UnknownMethod(
            f"the worker of {agent!r} has no handler {exception}: restart it if it is older"
        )
    return None, RemoteError(agent, name, text, traceback)


def _cancelled(agent: str, message_id: str) -> Cancelled:
    return Cancelled(f"request {message_id} to {agent!r} was cancelled before it was answered")


def _class_and_text(exception: Any, traceback: str) -> tuple[str, str]:
    """Return an exception's class name and text, from its traceback when Celery could not carry it itself."""
    name, text = class_name(exception), str(exception)
    if text.startswith("<class '"):
        found = re.findall(r"^(?:[\w.]+\.)?(\w+): (.*(?:\n(?!\w).*)*)", traceback, re.MULTILINE)
        if found:
            return str(found[-1][0]), str(found[-1][1]).strip()
    return name, text
