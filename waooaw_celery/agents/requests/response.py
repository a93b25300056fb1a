"""The response to a request, made from the result message or the reply."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from waooaw_celery.agents.requests.error_form import ERROR_CODEC
from waooaw_celery.errors import (
    Cancelled,
    DeadlineExceeded,
    Expired,
    InvalidArguments,
    RemoteError,
    RequestTimeout,
    UnknownMethod,
    WaooawError,
)
from waooaw_celery.messages.json_form import CODEC, JsonForm
from waooaw_celery.messages.validation import JSON
from waooaw_celery.results.pending import ResultMessage
from waooaw_celery.worker.cancellation import CANCELLED
from waooaw_celery.worker.signals import IGNORED, class_name

#: Celery's states of a task without a result.
_FAILED = frozenset({"FAILURE", "RETRY", "REVOKED"})
#: Reasons that Celery and this package give for a task that was revoked, but did not expire.
_CANCELLED = frozenset({CANCELLED, "revoked", "terminated"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Response(JsonForm):
    """The result of a request, or its error.

    Attributes:
        agent: the requested agent.
        message_id: id of the request, which is also its correlation id.
        result: the result, a JSON value; None if there is an error.
        error: RemoteError, InvalidArguments, RequestTimeout, Expired, Cancelled, UnknownMethod or
            BackendUnavailable; None if there is a result.
        seconds: seconds from the request to the response.
    """

    agent: str
    message_id: str
    result: JSON
    error: WaooawError | None = field(metadata={CODEC: ERROR_CODEC})
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return self.error is None


def response_of_reply(agent: str, reply: Mapping[str, Any], now: datetime) -> Response:
    """Return the response that a reply message carries.

    Args:
        agent: the requested agent.
        reply: the payload of the reply.
        now: the time by the reference clock.
    """
    message_id, error = reply["message_id"], reply["error"]
    asked_at = datetime.fromisoformat(reply["asked_at"])
    problem: WaooawError | None = None
    if error is not None and error["type"] == "Expired":
        problem = _expired(agent, message_id)
    elif error is not None and error["type"] == "Cancelled":
        problem = _cancelled(agent, message_id)
    elif error is not None:
        problem = _remote_error(agent, error["type"], error["message"], error["traceback"])
    return Response(
        agent=agent,
        message_id=message_id,
        result=reply["result"],
        error=problem,
        seconds=(now - asked_at).total_seconds(),
    )


def result_of(response: Response) -> JSON:
    """Return the result of a response, or raise its error."""
    if response.error is not None:
        raise response.error
    return response.result


def outcome_of(agent: str, message_id: str, answered: ResultMessage) -> tuple[JSON, WaooawError | None]:
    """Return the result and the error of a request; one of them is None.

    Args:
        agent: the requested agent.
        message_id: id of the request.
        answered: what the result backend stores for the request.
    """
    state, value, traceback = answered
    if state not in _FAILED:
        return value, None
    name, text = _class_and_text(value, traceback or "")
    if state == "REVOKED" and str(value) == "expired":
        return None, _expired(agent, message_id)
    if state == "REVOKED" and str(value) in _CANCELLED:
        return None, _cancelled(agent, message_id)
    if state == "REVOKED" and text.startswith(IGNORED):
        return None, RemoteError(agent, "Ignore", text.removeprefix(IGNORED))
    if name == "NotRegistered":
        return None, UnknownMethod(
            f"the worker of {agent!r} has no handler {value}: restart it if it runs older code"
        )
    if isinstance(value, DeadlineExceeded):  # the agent's clock was a moment ahead of the caller's
        return None, RequestTimeout(f"{agent!r} did not answer request {message_id} in time: it was stopped")
    return None, _remote_error(agent, name, text, traceback)


def _remote_error(agent: str, type_: str, text: str, traceback: str | None) -> WaooawError:
    # Another agent's name is in the text if the handler itself sent a request with wrong arguments.
    if type_ == InvalidArguments.__name__ and text.startswith(f"{agent}."):
        return InvalidArguments(text)
    return RemoteError(agent, type_, text, traceback)


def _expired(agent: str, message_id: str) -> Expired:
    return Expired(f"{agent!r} dropped request {message_id}: it expired before it was begun")


def _cancelled(agent: str, message_id: str) -> Cancelled:
    return Cancelled(f"request {message_id} to {agent!r} was cancelled before it was answered")


def _class_and_text(exception: Any, traceback: str) -> tuple[str, str]:
    """Return an exception's class name and text; if Celery could not carry them, those in its traceback."""
    name, text = class_name(exception), str(exception)
    if text.startswith("<class '"):
        found = re.findall(r"^(?:[\w.]+\.)?(\w+): (.*(?:\n(?!\w).*)*)", traceback, re.MULTILINE)
        if found:
            return str(found[-1][0]), str(found[-1][1]).strip()
    return name, text
