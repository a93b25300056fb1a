"""Reads from the ledger what became of a task, so that any process can tell, also after a crash of this one."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from waooaw_celery.app.app import AgentApp
from waooaw_celery.edges.gateway.task import TaskError, TaskInfo, TaskState
from waooaw_celery.errors import UnknownMessage, UnknownWorkflow
from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import MessageStatus, MessageType
from waooaw_celery.messages.validation import JSON
from waooaw_celery.worker.outcomes.answers import answer_id
from waooaw_celery.workflows.info import WorkflowInfo
from waooaw_celery.workflows.states import WorkflowStatus
from waooaw_celery.workflows.workflows import Workflows

_MESSAGES = {
    MessageStatus.PENDING: TaskState.SUBMITTED,
    MessageStatus.SENT: TaskState.SUBMITTED,
    MessageStatus.DELIVERED: TaskState.WORKING,
    MessageStatus.HANDLED: TaskState.COMPLETED,
    MessageStatus.EXPIRED: TaskState.EXPIRED,
    MessageStatus.CANCELLED: TaskState.CANCELLED,
}
_WORKFLOWS = {
    WorkflowStatus.PENDING: TaskState.SUBMITTED,
    WorkflowStatus.COMPLETED: TaskState.COMPLETED,
    WorkflowStatus.FAILED: TaskState.FAILED,
    WorkflowStatus.COMPENSATED: TaskState.FAILED,
    WorkflowStatus.CANCELLED: TaskState.CANCELLED,
    WorkflowStatus.TIMED_OUT: TaskState.EXPIRED,
}
#: What is told of a request that was handled, and whose answer the ledger does not have.
_NOT_RECORDED = TaskError(
    type="ResultNotRecorded",
    message=(
        "it has ended well, and its result is not known here: it was erased, or the workers do not record answers "
        "(waooaw_record_answers)"
    ),
)
#: How ``WorkflowInfo.waits_for`` names a wait for a signal: the path of the step, with its number.
_SIGNAL = re.compile(r"(?:^|, |/)signal (?P<name>.+?)#\d+(?=, | and \d+ more$|$)")


class TaskReader:
    """Reads tasks from the ledger.

    Args:
        app: the application, with a ledger.
    """

    def __init__(self, app: AgentApp) -> None:
        self._app = app
        self._trail = MessageAuditTrail(app.ledger)
        self._workflows = Workflows(app)

    def read(self, task_id: str) -> TaskInfo:
        """Return a task.

        Raises:
            UnknownMessage: the ledger has no message or workflow with this id.
            InvalidMessage: this is not a valid id.
        """
        record = self._trail.receipt(task_id)
        try:
            workflow = self._workflows.get(task_id)
        except UnknownWorkflow:
            return self._of_message(record)
        return _of_workflow(record, workflow)

    def _of_message(self, record: AuditRecord) -> TaskInfo:
        receipt = record.receipt
        state = _MESSAGES.get(receipt.status, TaskState.FAILED)
        result: JSON = None
        parts: JSON = None
        error = None if receipt.error is None else TaskError(type="Error", message=receipt.error)
        if state in (TaskState.COMPLETED, TaskState.FAILED):
            answer = self._answer(receipt.message_id)
            result = answer.get("result")
            parts = (answer.get("stream") or {}).get("parts")
            if (told := answer.get("error")) is not None:
                error = TaskError(type=told["type"], message=told["message"])
            elif state is TaskState.COMPLETED and not answer and receipt.message_type is MessageType.QUERY:
                error = _NOT_RECORDED  # a result of None would be a wrong one
        return TaskInfo(
            task_id=receipt.message_id,
            agent=receipt.to_agent,
            method=receipt.handler,
            is_workflow=False,
            state=state,
            conversation_id=record.conversation_id,
            from_agent=receipt.from_agent,
            arguments=record.payload,
            result=result,
            error=error,
            waits_for=None,
            progress=None,
            created_at=receipt.sent_at,
            updated_at=_changed_at(record),
            parts=parts,
        )

    def _answer(self, task_id: str) -> dict[str, Any]:
        """Return the recorded answer to a request; empty: there is none, or it was erased."""
        try:
            found = self._trail.receipt(answer_id(task_id))
        except UnknownMessage:
            return {}
        payload = self._trail.payload(found.receipt.message_id) if found.reference is not None else found.payload
        return payload if isinstance(payload, dict) else {}


def _of_workflow(record: AuditRecord, workflow: WorkflowInfo) -> TaskInfo:
    signal = _SIGNAL.search(workflow.waits_for or "")
    state = _WORKFLOWS.get(workflow.status, TaskState.WORKING)
    if state is TaskState.WORKING and signal is not None:
        state = TaskState.INPUT_REQUIRED
    error = workflow.error
    return TaskInfo(
        task_id=workflow.workflow_id,
        agent=workflow.agent,
        method=workflow.name.partition(".")[2],
        is_workflow=True,
        state=state,
        conversation_id=workflow.conversation_id,
        from_agent=record.receipt.from_agent,
        arguments=workflow.input,
        result=workflow.result,
        error=(
            TaskError(type=str(error.get("type", "Error")), message=str(error.get("message", "")))
            if isinstance(error, dict)
            else None
        ),
        waits_for=signal["name"] if signal is not None and not state.final else None,
        progress=workflow.progress,
        created_at=workflow.created_at,
        updated_at=workflow.ended_at or workflow.started_at or workflow.created_at,
    )


def _changed_at(record: AuditRecord) -> datetime:
    return max([record.receipt.sent_at, *(each.at for each in record.events)])
