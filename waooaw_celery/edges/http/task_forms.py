"""Tasks and receipts as clients see them: plain JSON."""

from __future__ import annotations

from typing import Any

from waooaw_celery.edges.gateway.task import TaskInfo
from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.messages.topics.plain_json import as_json


def task_form(task: TaskInfo) -> dict[str, Any]:
    """Return a task as plain JSON. Text replaces the types that JSON does not have."""
    return {
        "task_id": task.task_id,
        "agent": task.agent,
        "method": task.method,
        "is_workflow": task.is_workflow,
        "state": str(task.state),
        "conversation_id": task.conversation_id,
        "arguments": as_json(task.arguments, str),
        "result": as_json(task.result, str),
        "error": None if task.error is None else {"type": task.error.type, "message": task.error.message},
        "waits_for": task.waits_for,
        "progress": as_json(task.progress, str),
        "created_at": task.created_at.isoformat(),
        "updated_at": task.updated_at.isoformat(),
    }


def receipt_form(receipt: DeliveryReceipt) -> dict[str, Any]:
    """Return a receipt as plain JSON."""
    return receipt.to_dict()
