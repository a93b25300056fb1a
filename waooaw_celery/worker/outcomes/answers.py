"""What a handler answers to a request: the payload of the answer, and its record in the ledger."""

from __future__ import annotations

from typing import Any
from uuid import NAMESPACE_OID, uuid5

from celery.app.task import Context

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.enums import MessageType
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER, ReplyTo
from waooaw_celery.messages.validation import JSON
from waooaw_celery.worker.attempt import attempt_of
from waooaw_celery.worker.outcomes.sent_parts import records_answers
from waooaw_celery.worker.record import readable_message

Outcome = dict[str, Any]


def succeeded(result: JSON) -> Outcome:
    """Return the outcome of a request whose handler returned."""
    return {"result": result, "error": None}


def failed(type_: str, message: str, traceback: object = None) -> Outcome:
    """Return the outcome of a request whose handler failed, or was never called.

    Args:
        type_: name of the error's class.
        message: its text.
        traceback: its traceback, or None.
    """
    error = {"type": type_, "message": message, "traceback": traceback and str(traceback)}
    return {"result": None, "error": error}


def answer_payload(request: Message, outcome: Outcome) -> dict[str, JSON]:
    """Return the payload of the answer to a request.

    Args:
        request: the request.
        outcome: what ``succeeded`` or ``failed`` returned.
    """
    return {"message_id": request.message_id, "asked_at": request.sent_at.isoformat(), **outcome}


def answer_id(request_id: str) -> str:
    """Return the id that the recorded answer to a request has in the ledger.

    Args:
        request_id: id of the request.
    """
    return str(uuid5(NAMESPACE_OID, f"answer to {request_id}"))


def recorded_answer(task: Any, request: Context | None, outcome: Outcome) -> Message | None:
    """Return the answer to a request as the message that the ledger records.

    Call it when the answer is in the result backend.

    Args:
        task: the handler, an AgentTask.
        request: Celery's request; None: unknown.
        outcome: what ``succeeded`` or ``failed`` returned.

    Returns:
        None where nothing is recorded: nobody gets an answer, it is sent as a message, there is no ledger, or
        ``waooaw_record_answers`` is off.
    """
    app = task.app
    if request is None or not records_answers(app):
        return None
    message = readable_message(task, request)
    if message is None or task.ignore_result or request.ignore_result:
        return None
    try:
        reply_to = ReplyTo.from_header((request.headers or {}).get(REPLY_TO_HEADER))
    except InvalidMessage:  # its handler failed for this reason
        reply_to = None
    if reply_to is not None and reply_to.on_reply is not None:
        return None
    parts = attempt_of(request).sent_parts
    if parts is not None:
        outcome = {**outcome, "stream": parts.to_payload()}
        if outcome["error"] is None:
            outcome["result"] = outcome["result"]["result"]  # the result backend has a frame around it
    return message.filled_in(
        # The same for each answer to a request: the first one counts.
        message_id=answer_id(message.message_id),
        has_new_id=False,
        from_agent=task.agent,
        to_agent=message.from_agent,
        message_type=MessageType.RESPONSE,
        payload=answer_payload(message, outcome),
        ttl_seconds=None,
        causation_id=message.message_id,
        sent_at=app.reference_clock.now(),
        serializer=None,
        compression=None,
        event=None,
        resent=0,
        capability=None,
        identity=app.message_factory.identity_of(task.agent),
    )
