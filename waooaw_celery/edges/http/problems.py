"""Errors as problem details (RFC 9457): which status each has, and when to try again."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from waooaw_celery import errors
from waooaw_celery.edges.gateway.task import TaskInfo, TaskState
from waooaw_celery.edges.http.task_forms import task_form
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: The status of each error; the first class that fits decides.
_STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (errors.NotPermitted, 403),
    (errors.InvalidArguments, 422),
    (errors.WorkflowConflict, 422),
    (errors.SchemaViolation, 422),
    (errors.InvalidMessage, 400),
    (errors.NoAgentAvailable, 503),
    (errors.NoWorker, 503),
    (errors.LedgerMismatch, 503),
    (errors.UnknownAgent, 404),
    (errors.UnknownMessage, 404),
    (errors.UnknownWorkflow, 404),
    (errors.WorkflowEnded, 409),
    (errors.NotStoppable, 409),
    (errors.Cancelled, 409),
    (errors.RateLimitExceeded, 429),
    (errors.SenderPaused, 429),
    (errors.QueueFull, 429),
    (errors.TooManyInFlight, 429),
    (errors.CircuitOpen, 503),
    (errors.StoreUnavailable, 503),
    (errors.BrokerUnavailable, 503),
    (errors.BackendUnavailable, 503),
    (errors.RequestTimeout, 504),
    (errors.Expired, 504),
)
#: Errors whose texts name servers of the inner network: the log has them, a client does not.
_INNER = (errors.StoreUnavailable, errors.BrokerUnavailable, errors.BackendUnavailable)
#: Seconds after which to try again, where the error does not tell.
_LATER = {errors.SenderPaused: 60, errors.CircuitOpen: 60}
_SOON = 5

#: The status of a task without a result. A handler that failed is no fault of the gateway: with 502, clients and
#: proxies would repeat the request.
_TASK_STATUSES = {TaskState.FAILED: 500, TaskState.EXPIRED: 504, TaskState.CANCELLED: 409}


class Problem(Exception):
    """A request that is answered with a problem.

    Args:
        status: the HTTP status.
        detail: why, and what to do.
        headers: more headers.
    """

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


def problem_of(error: Exception) -> dict[str, Any]:
    """Return an error as problem details. One that nobody expects tells nothing, and is logged."""
    if isinstance(error, Problem):
        return _problem(error.status, error.detail)
    if isinstance(error, HTTPException):
        return _problem(error.status_code, error.detail)
    status = next((number for kind, number in _STATUSES if isinstance(error, kind)), None)
    if status is None:
        logger.error("an edge could not answer", exc_info=error, extra={"action": "edge_failed"})
        return _problem(500, "the edge could not answer: its log tells why")
    if isinstance(error, _INNER):
        logger.warning("an edge could not answer: %s", error, extra={"action": "edge_unavailable"})
        return _problem(503, "the ledger, the broker or the result backend does not answer: try again later")
    return _problem(status, str(error))


def problem_of_task(task: TaskInfo) -> dict[str, Any]:
    """Return a task that ended without a result as problem details."""
    told = f"{task.error.type}: {task.error.message}" if task.error is not None else f"the task is {task.state}"
    was_stopped = task.error is not None and task.error.type == errors.DeadlineExceeded.__name__
    status = 504 if was_stopped else _TASK_STATUSES[task.state]
    return _problem(status, told) | {"task": task_form(task)}


def problem_response(error: Exception) -> Response:
    """Return the answer to a request that raised an error."""
    headers = error.headers if isinstance(error, Problem | HTTPException) else None
    problem = problem_of(error)
    headers = dict(headers or {})
    if problem["status"] in (429, 503):
        headers.setdefault("Retry-After", str(retry_after(error)))
    return ProblemResponse(problem, headers)


class ProblemResponse(JSONResponse):
    """An answer with problem details.

    Args:
        problem: the problem details.
        headers: more headers.
    """

    media_type = "application/problem+json"

    def __init__(self, problem: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        super().__init__(problem, problem["status"], headers)


def retry_after(error: Exception) -> int:
    """Return the whole seconds after which a request may be tried again."""
    seconds = getattr(error, "retry_after", None)
    if isinstance(seconds, int | float) and math.isfinite(seconds):
        return max(1, math.ceil(seconds))
    return next((number for kind, number in _LATER.items() if isinstance(error, kind)), _SOON)


def answered(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler whose errors are answered as problem details, never with a traceback."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:  # noqa: BLE001 - an error that nobody expects is logged and answered
            return problem_response(error)

    return answer


def _problem(status: int, detail: str) -> dict[str, Any]:
    return {"type": "about:blank", "status": status, "detail": detail}
