"""Replies: answers to requests that are sent as messages to a handler of the agent that asked."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from celery import signals
from celery.app.task import Context

from waooaw_celery.errors import EncodingFailed, InvalidMessage, WaooawError
from waooaw_celery.messages.enums import MessageType
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER, ReplyTo
from waooaw_celery.messages.validation import json_copy
from waooaw_celery.worker.admission import reason_to_skip
from waooaw_celery.worker.outcomes.dead_lettering import request_of
from waooaw_celery.worker.outcomes.follow_up_sender import send_unless_sent
from waooaw_celery.worker.outcomes.follow_ups import TEMPORARY_ERRORS, FollowUp
from waooaw_celery.worker.signals import class_name
from waooaw_celery.worker.task import AgentTask

logger = logging.getLogger(__name__)


def connect() -> None:
    """Connect the receivers, once per process; a second call changes nothing."""
    for signal, receiver in _RECEIVERS:
        signal.connect(receiver, weak=False, dispatch_uid=f"waooaw.replies.{receiver.__name__}")


def on_success(sender: Any, result: Any = None, **_: Any) -> None:
    """Reply with the handler's result (in the pool process)."""
    if isinstance(sender, AgentTask):
        try:
            outcome = {"result": json_copy(result, "the result"), "error": None}
        except InvalidMessage as error:
            outcome = _failure("InvalidMessage", str(error))
        _reply(sender, sender.request, outcome)


def on_failure(sender: Any, task_id: str, exception: BaseException, einfo: Any = None, **_: Any) -> None:
    """Reply that the handler failed, ran too long or lost its process (in the pool or the main process)."""
    if isinstance(sender, AgentTask):
        traceback = getattr(einfo, "traceback", None)
        _reply(sender, request_of(sender, task_id), _failure(class_name(exception), str(exception), traceback))


def on_revoked(sender: Any, request: Any, expired: bool = False, **_: Any) -> None:
    """Reply that the request expired, or was revoked (in the main process)."""
    if isinstance(sender, AgentTask):
        _reply(sender, request, _failure("Expired" if expired else "Cancelled", ""))


def on_prerun(sender: Any, **_: Any) -> None:
    """Reply that the request expired or was cancelled while it waited in the worker (in the pool process)."""
    if isinstance(sender, AgentTask) and (event := reason_to_skip(sender)) is not None:
        _reply(sender, sender.request, _failure("Expired" if event is MessageEvent.EXPIRED else "Cancelled", ""))


def on_postrun(sender: Any, **_: Any) -> None:
    """Reply that the handler was stopped (in the pool process)."""
    if isinstance(sender, AgentTask) and sender.was_stopped():
        _reply(sender, sender.request, _failure("Cancelled", ""))


def _failure(type_: str, message: str, traceback: object = None) -> dict[str, Any]:
    error = {"type": type_, "message": message, "traceback": traceback and str(traceback)}
    return {"result": None, "error": error}


def _reply(task: AgentTask, request: Context | None, outcome: dict[str, Any]) -> None:
    """Send the outcome of a request to the handler that its reply-to header names, if there is one."""
    header = (request.headers or {}).get(REPLY_TO_HEADER) if request is not None else None
    if request is None or header is None:
        return
    try:
        reply_to = ReplyTo.from_header(header)
        name = None if reply_to is None else reply_to.on_reply
        handler = None if name is None else HandlerName.parse(name)
        if handler is not None:
            _send(task, task.message_of(request), handler, outcome)
    except WaooawError as error:
        extra = {"action": "not_replied"}
        logger.error("the reply to %s could not be sent: %s", request.id, error, extra=extra)  # noqa: TRY400


def _send(task: AgentTask, request: Message, handler: HandlerName, outcome: dict[str, Any]) -> None:
    app: Any = task.app
    reply = app.message_factory.complete(handler, _reply_message(task, request, handler, outcome))
    try:
        app.publisher.publish([(handler, reply)])
    except TEMPORARY_ERRORS as error:
        what = f"the reply to {request.message_id}"
        follow_up = FollowUp(
            message_id=request.message_id,
            what=what,
            send=partial(_send_later, app, handler, reply),
            refuse=partial(_log_refused, what),
            expires_at=reply.expires_at,
            recorded=app.settings.database_url is not None,
        )
        app.follow_ups.keep(follow_up, error)
    except EncodingFailed as error:  # the result is too large, or its format cannot hold it: reply with the error
        if outcome["error"] is not None:
            raise
        _send(task, request, handler, _failure("EncodingFailed", str(error)))
    except InvalidMessage as error:  # an earlier attempt, which was not acknowledged, has sent it
        logger.info("no second reply to %s: %s", request.message_id, error, extra={"action": "no_second_reply"})


def _reply_message(task: AgentTask, request: Message, handler: HandlerName, outcome: dict[str, Any]) -> Message:
    return Message(
        # The id is the same for each reply to a request, so that a second one is refused.
        message_id=str(uuid5(NAMESPACE_OID, f"reply to {request.message_id}")),
        from_agent=task.agent,
        to_agent=handler.agent,
        message_type=MessageType.RESPONSE,
        payload={"message_id": request.message_id, "asked_at": request.sent_at.isoformat(), **outcome},
        priority=request.priority,
        ttl_seconds=task.app.settings.ttl_seconds,  # type: ignore[attr-defined]  # an AgentApp
        correlation_id=request.correlation_id,
        conversation_id=request.conversation_id,
        causation_id=request.message_id,
        retention=request.retention,
    )


def _send_later(app: Any, handler: HandlerName, reply: Message) -> None:
    try:
        send_unless_sent(app, reply.message_id, partial(app.publisher.publish, [(handler, reply)]))
    except InvalidMessage as error:
        logger.info("no second reply: %s", error, extra={"action": "no_second_reply"})


def _log_refused(what: str, error: Exception) -> None:
    logger.error("%s could not be sent: %s", what, error, extra={"action": "not_replied"})


_RECEIVERS = (
    (signals.task_prerun, on_prerun),
    (signals.task_postrun, on_postrun),
    (signals.task_success, on_success),
    (signals.task_failure, on_failure),
    (signals.task_revoked, on_revoked),
)
