"""The JSON form in which the error of a step is recorded."""

from __future__ import annotations

import traceback
from typing import Any

from waooaw_celery.errors import (
    BackendUnavailable,
    BrokerUnavailable,
    Cancelled,
    ConfigurationError,
    EncodingFailed,
    Expired,
    InvalidArguments,
    InvalidMessage,
    NoAgentAvailable,
    NoHandler,
    RemoteError,
    RequestTimeout,
    SignalTimeout,
    StepFailed,
    StepTimeout,
    UnknownAgent,
    UnknownMethod,
    UnknownWorkflow,
    WaooawError,
    WorkflowConflict,
    WorkflowFailed,
)
from waooaw_celery.ledger.database.rows import storable
from waooaw_celery.messages.validation import JSON

#: The longest text and traceback of an error that are recorded, in characters.
_LONGEST_TEXT, _LONGEST_TRACEBACK = 10_000, 20_000
#: Errors that are made from their text alone.
_PLAIN: dict[str, type[WaooawError]] = {
    cls.__name__: cls
    for cls in (
        BackendUnavailable,
        BrokerUnavailable,
        Cancelled,
        ConfigurationError,
        EncodingFailed,
        Expired,
        InvalidArguments,
        InvalidMessage,
        NoHandler,
        RequestTimeout,
        SignalTimeout,
        StepTimeout,
        UnknownAgent,
        UnknownMethod,
        UnknownWorkflow,
        WorkflowConflict,
    )
}


def error_to_json(error: BaseException) -> dict[str, JSON]:
    """Return an error as its class, its text and its traceback; of a RemoteError, those of the other agent."""
    if isinstance(error, RemoteError):
        return {
            "type": "RemoteError",
            "message": storable(error.message)[:_LONGEST_TEXT],
            "agent": error.agent,
            "remote_type": error.type,
            "traceback": error.traceback and storable(error.traceback)[-_LONGEST_TRACEBACK:],
        }
    if isinstance(error, WorkflowFailed):
        return {
            "type": "WorkflowFailed",
            "message": error.message,
            "workflow_id": error.workflow_id,
            "status": error.status,
            "child_type": error.type,
        }
    if isinstance(error, NoAgentAvailable):
        considered = {name: storable(reason) for name, reason in error.considered.items()}
        message = storable(str(error))[:_LONGEST_TEXT]
        return {
            "type": "NoAgentAvailable",
            "message": message,
            "capability": error.capability,
            "considered": considered,
        }
    if isinstance(error, StepFailed) and error.type:
        return {"type": error.type, "message": error.message, "traceback": error.traceback}
    known = type(error).__name__ in _PLAIN and isinstance(error, WaooawError)
    lines = None if known else "".join(traceback.format_exception(error))
    return {
        "type": type(error).__name__,
        "message": storable(str(error))[:_LONGEST_TEXT],
        "traceback": lines and storable(lines)[-_LONGEST_TRACEBACK:],
    }


def error_from_json(value: Any, step: str) -> WaooawError:
    """Return the error of a step as it was recorded.

    Args:
        value: what ``error_to_json`` returned.
        step: the path of the step.

    Returns:
        An error of this package, or a StepFailed with the class name of any other error: the process that reads
        the journal may not have its class.
    """
    name, message = value["type"], value["message"]
    if name == "RemoteError":
        return RemoteError(value["agent"], value["remote_type"], message, value.get("traceback"))
    if name == "WorkflowFailed":
        return WorkflowFailed(value["workflow_id"], value["status"], value["child_type"], message)
    if name == "NoAgentAvailable":
        return NoAgentAvailable(value["capability"], value["considered"])
    if name in _PLAIN:
        error: WaooawError = _PLAIN[name](message)
        return error
    return StepFailed(step, name, message, value.get("traceback"))
