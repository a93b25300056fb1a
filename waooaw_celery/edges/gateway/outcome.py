"""What became of a call whose answer has just arrived in this process."""

from __future__ import annotations

from datetime import UTC, datetime

from waooaw_celery.agents.requests.response import Response
from waooaw_celery.edges.gateway.task import Call, TaskError, TaskInfo, TaskState
from waooaw_celery.errors import Cancelled, Expired, RemoteError, RequestTimeout

#: Why a call has no result, by the error of its request.
_STATES = ((Cancelled, TaskState.CANCELLED), (Expired, TaskState.EXPIRED), (RequestTimeout, TaskState.EXPIRED))


def task_of_response(call: Call, response: Response, began: datetime) -> TaskInfo:
    """Return the task of a call that was answered; the ledger may learn of the answer a moment later."""
    error = response.error
    state = TaskState.COMPLETED
    if error is not None:
        state = next((state for kind, state in _STATES if isinstance(error, kind)), TaskState.FAILED)
    return TaskInfo(
        task_id=call.task_id,
        agent=call.agent,
        method=call.method,
        is_workflow=False,
        state=state,
        conversation_id=call.conversation_id or call.task_id,
        from_agent=call.principal.from_agent,
        arguments=dict(call.arguments),
        result=response.result,
        error=None if error is None else task_error(error),
        waits_for=None,
        progress=None,
        created_at=began,
        updated_at=datetime.now(UTC),
    )


def task_error(error: Exception) -> TaskError:
    """Return the error of a task: that of the handler, if it is known."""
    if isinstance(error, RemoteError):
        return TaskError(type=error.type, message=error.message)
    return TaskError(type=type(error).__name__, message=str(error))
