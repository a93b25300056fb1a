"""Answers that go as messages: to a handler of the agent that asked, which waits for nothing meanwhile."""

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
from waooaw_celery.worker.outcomes.follow_ups import NOT_NOW, FollowUp
from waooaw_celery.worker.signals import class_name
from waooaw_celery.worker.task import AgentTask

logger = logging.getLogger(__name__)


def connect() -> None:
    """Listen. Called once a process; calling it again changes nothing."""
    for signal, receiver in _RECEIVERS:
        signal.connect(receiver, weak=False, dispatch_uid=f"waooaw.replies.{receiver.__name__}")


def on_success(sender: Any, result: Any = None, **_: Any) -> None:
    """The handler returned (pool child)."""
    if isinstance(sender, AgentTask):
        try:
            said = {"result": json_copy(result, "the result"), "error": None}
        except InvalidMessage as error:
            said = _failure("InvalidMessage", str(error))
        _reply(sender, sender.request, said)


def on_failure(sender: Any, task_id: str, exception: BaseException, einfo: Any = None, **_: Any) -> None:
    """The handler gave up, ran too long or took its process with it (pool child or parent)."""
    if isinstance(sender, AgentTask):
        traceback = getattr(einfo, "traceback", None)
        _reply(sender, request_of(sender, task_id), _failure(class_name(exception), str(exception), traceback))


def on_revoked(sender: Any, request: Any, expired: bool = False, **_: Any) -> None:
    """The request expired before it was begun, or was revoked (parent)."""
    if isinstance(sender, AgentTask):
        _reply(sender, request, _failure("Expired" if expired else "Cancelled", ""))


def on_prerun(sender: Any, **_: Any) -> None:
    """The request expired, or was cancelled, while it waited in the worker (pool child)."""
    if isinstance(sender, AgentTask) and (event := reason_to_skip(sender)) is not None:
        _reply(sender, sender.request, _failure("Expired" if event is MessageEvent.EXPIRED else "Cancelled", ""))


def on_postrun(sender: Any, **_: Any) -> None:
    """The handler was stopped (pool child)."""
    if isinstance(sender, AgentTask) and sender.was_stopped():
        _reply(sender, sender.request, _failure("Cancelled", ""))


def _failure(type_: str, message: str, traceback: object = None) -> dict[str, Any]:
    error = {"type": type_, "message": message, "traceback": traceback and str(traceback)}
    return {"result": None, "error": error}


def _reply(task: AgentTask, request: Context | None, said: dict[str, Any]) -> None:
    """Send what became of a request to the handler that waits for the reply, if there is one."""
    header = (request.headers or {}).get(REPLY_TO_HEADER) if request is not None else None
    if request is None or header is None:
        return
    try:
        call = ReplyTo.from_header(header)
        handler = HandlerName.parse(call.on_reply) if call is not None and call.on_reply is not None else None
        if handler is not None:
            _send(task, task.message_of(request), handler, said)
    except WaooawError as error:
        extra = {"action": "not_replied"}
        logger.error("the reply to %s could not be sent: %s", request.id, error, extra=extra)  # noqa: TRY400


def _send(task: AgentTask, asked: Message, handler: HandlerName, said: dict[str, Any]) -> None:
    reply = Message(
        # The same for each reply to a request: of two, the second is none.
        message_id=str(uuid5(NAMESPACE_OID, f"reply to {asked.message_id}")),
        from_agent=task.agent,
        to_agent=handler.agent,
        message_type=MessageType.RESPONSE,
        payload={"message_id": asked.message_id, "asked_at": asked.sent_at.isoformat(), **said},
        priority=asked.priority,
        ttl_seconds=task.app.settings.ttl_seconds,  # type: ignore[attr-defined]  # an AgentApp, above here
        correlation_id=asked.correlation_id,
        conversation_id=asked.conversation_id,
        causation_id=asked.message_id,
        retention=asked.retention,
    )
    app: Any = task.app
    reply = app.message_factory.complete(handler, reply)
    try:
        app.publisher.publish([(handler, reply)])
    except NOT_NOW as error:
        what = f"the reply to {asked.message_id}"
        follow_up = FollowUp(
            message_id=asked.message_id,
            what=what,
            send=partial(_send_again, app, handler, reply),
            refuse=partial(_tell_refused, what),
            expires_at=reply.expires_at,
            recorded=app.settings.database_url is not None,
        )
        app.follow_ups.keep(follow_up, error)
    except (
        EncodingFailed
    ) as error:  # the answer is too large, or its format cannot carry it: the caller is told that
        if said["error"] is not None:
            raise
        _send(task, asked, handler, _failure("EncodingFailed", str(error)))
    except InvalidMessage as error:  # it was sent already, by an attempt that nobody could acknowledge
        logger.info("no second reply to %s: %s", asked.message_id, error, extra={"action": "no_second_reply"})


def _send_again(app: Any, handler: HandlerName, reply: Message) -> None:
    try:
        send_unless_sent(app, reply.message_id, partial(app.publisher.publish, [(handler, reply)]))
    except InvalidMessage as error:
        logger.info("no second reply: %s", error, extra={"action": "no_second_reply"})


def _tell_refused(what: str, error: Exception) -> None:
    logger.error("%s could not be sent: %s", what, error, extra={"action": "not_replied"})


_RECEIVERS = (
    (signals.task_prerun, on_prerun),
    (signals.task_postrun, on_postrun),
    (signals.task_success, on_success),
    (signals.task_failure, on_failure),
    (signals.task_revoked, on_revoked),
)
