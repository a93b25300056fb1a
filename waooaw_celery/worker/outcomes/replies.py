"""Replies: answers to requests that are sent as messages to a handler of the agent that asked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from celery import signals
from celery.app.task import Context

from waooaw_celery.errors import EncodingFailed, InvalidMessage, WaooawError
from waooaw_celery.messages.enums import MessageType
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER, ReplyTo
from waooaw_celery.messages.validation import json_copy
from waooaw_celery.worker.admission import reason_to_skip
from waooaw_celery.worker.outcomes.answers import answer_payload, failed, succeeded
from waooaw_celery.worker.outcomes.dead_lettering import request_of
from waooaw_celery.worker.outcomes.follow_up_sender import send_unless_sent
from waooaw_celery.worker.outcomes.follow_ups import TEMPORARY_ERRORS, FollowUp
from waooaw_celery.worker.signals import class_name
from waooaw_celery.worker.task import AgentTask

logger = get_logger(__name__)


def connect() -> None:
    """Connect the receivers, once per process; a second call changes nothing."""
    for signal, receiver in _RECEIVERS:
        signal.connect(receiver, weak=False, dispatch_uid=f"waooaw.replies.{receiver.__name__}")


def on_success(sender: Any, result: Any = None, **_: Any) -> None:
    """Reply with the handler's result (in the pool process)."""
    if isinstance(sender, AgentTask) and _is_replied(sender.request):
        try:
            outcome = succeeded(json_copy(result, "the result"))
        except InvalidMessage as error:
            outcome = failed("InvalidMessage", str(error))
        _reply(sender, sender.request, outcome)


def on_failure(sender: Any, task_id: str, exception: BaseException, einfo: Any = None, **_: Any) -> None:
    """Reply that the handler failed, ran too long or lost its process (in the pool or the main process)."""
    if isinstance(sender, AgentTask):
        traceback = getattr(einfo, "traceback", None)
        _reply(sender, request_of(sender, task_id), failed(class_name(exception), str(exception), traceback))


def on_revoked(sender: Any, request: Any, expired: bool = False, **_: Any) -> None:
    """Reply that the request expired, or was revoked (in the main process)."""
    if isinstance(sender, AgentTask):
        _reply(sender, request, failed("Expired" if expired else "Cancelled", ""))


def on_prerun(sender: Any, **_: Any) -> None:
    """Reply that the request expired or was cancelled while it waited in the worker (in the pool process)."""
    if (
        isinstance(sender, AgentTask)
        and _is_replied(sender.request)
        and (event := reason_to_skip(sender)) is not None
    ):
        _reply(sender, sender.request, failed("Expired" if event is MessageEvent.EXPIRED else "Cancelled", ""))


def on_postrun(sender: Any, **_: Any) -> None:
    """Reply that the handler was stopped (in the pool process)."""
    if isinstance(sender, AgentTask) and _is_replied(sender.request) and sender.was_stopped():
        _reply(sender, sender.request, failed("Cancelled", ""))


def _is_replied(request: Context) -> bool:
    """Return whether the outcome may have to be sent as a message: most messages are no such requests."""
    header = (request.headers or {}).get(REPLY_TO_HEADER)
    return header is not None and (not isinstance(header, Mapping) or header.get("on_reply") is not None)


def _reply(task: AgentTask, request: Context | None, outcome: dict[str, Any]) -> None:
    """Send the outcome of a request to the handler that its reply-to header names, if there is one."""
    header = (request.headers or {}).get(REPLY_TO_HEADER) if request is not None else None
    if request is None or header is None:
        return
    try:
        reply_to = ReplyTo.from_header(header)
        name = None if reply_to is None else reply_to.on_reply
        handler = None if name is None else HandlerName.parse(name)
        if reply_to is not None and handler is not None:
            _send(task, task.message_of(request), handler, outcome, reply_to.keep)
    except WaooawError as error:
        extra = {"action": "not_replied"}
        logger.error("the reply to %s could not be sent: %s", request.id, error, extra=extra)  # noqa: TRY400


def _send(
    task: AgentTask, request: Message, handler: HandlerName, outcome: dict[str, Any], keep: bool = False
) -> None:
    app: Any = task.app
    reply = app.message_factory.complete(handler, _reply_message(task, request, handler, outcome, keep))
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
        _send(task, request, handler, failed("EncodingFailed", str(error)), keep)
    except InvalidMessage as error:  # an earlier attempt, which was not acknowledged, has sent it
        logger.info(
            "the reply to %s was already sent, and is not sent again: %s",
            request.message_id,
            error,
            extra={"action": "no_second_reply"},
        )


def _reply_message(
    task: AgentTask, request: Message, handler: HandlerName, outcome: dict[str, Any], keep: bool
) -> Message:
    return Message(
        # The id is the same for each reply to a request, so that a second one is refused.
        message_id=str(uuid5(NAMESPACE_OID, f"reply to {request.message_id}")),
        from_agent=task.agent,
        to_agent=handler.agent,
        message_type=MessageType.RESPONSE,
        payload=answer_payload(request, outcome),
        priority=request.priority,
        ttl_seconds=None if keep else task.app.settings.ttl_seconds,  # type: ignore[attr-defined]  # an AgentApp
        correlation_id=request.correlation_id,
        conversation_id=request.conversation_id,
        causation_id=request.message_id,
        retention=request.retention,
        trace=request.trace,
    )


def _send_later(app: Any, handler: HandlerName, reply: Message) -> None:
    try:
        send_unless_sent(app, reply.message_id, partial(app.publisher.publish, [(handler, reply)]))
    except InvalidMessage as error:
        logger.info(
            "a reply was already sent, and is not sent again: %s", error, extra={"action": "no_second_reply"}
        )


def _log_refused(what: str, error: Exception) -> None:
    logger.error("%s could not be sent: %s", what, error, extra={"action": "not_replied"})


_RECEIVERS = (
    (signals.task_prerun, on_prerun),
    (signals.task_postrun, on_postrun),
    (signals.task_success, on_success),
    (signals.task_failure, on_failure),
    (signals.task_revoked, on_revoked),
)
