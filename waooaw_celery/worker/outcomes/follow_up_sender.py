"""Sends Celery's follow-ups of a message, so that a failure to send one never ends the message's worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from celery.result import AsyncResult

from waooaw_celery.errors import AuditUnavailable, InvalidMessage, StoreUnavailable, UnknownMessage
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName, agent_queue
from waooaw_celery.worker.current_task import is_errback, note_failed
from waooaw_celery.worker.outcomes.dead_lettering import item_of
from waooaw_celery.worker.outcomes.follow_ups import TEMPORARY_ERRORS, FollowUp

logger = get_logger(__name__)

#: Options of ``send_task`` that are of no use later.
_CONNECTION_OPTIONS = ("producer", "connection", "publisher")
#: By option of ``send_task``, the name that Celery's message has for what follows the task.
_CALLBACK_FIELDS = {"link": "callbacks", "link_error": "errbacks", "chain": "chain", "chord": "chord"}


@dataclass(slots=True)
class FollowUpRequest:
    """A task that is to be sent to an agent: the arguments of ``send_task``."""

    target: HandlerName
    args: Any
    kwargs: Any
    options: dict[str, Any]
    message: Message | None
    is_errback: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_errback = is_errback(str(self.target), self.args)

    @property
    def complete_message(self) -> Message:
        """The complete message.

        Raises:
            InvalidMessage: no message could be made.
        """
        if self.message is None:
            raise InvalidMessage(f"no message to {self.target} could be created")
        return self.message


def send_follow_up(app: Any, request: FollowUpRequest) -> AsyncResult[Any]:
    """Send an errback, a callback, the next step of a chain, or the body of a chord after a handler has ended.

    When broker or ledger does not answer, or accepts nothing, the follow-up is kept and sent later. An errback
    that can never be sent becomes a dead letter.

    Args:
        app: the application, an AgentApp.
        request: what to send.

    Raises:
        WaooawError: a callback, or the next step of a chain, can never be sent. The message that it follows fails.
    """
    target, options = request.target, request.options
    try:
        request.message = app.message_factory.of_task(
            target, request.args, request.kwargs, options, request.message
        )
        options["task_id"] = request.message.message_id
        app.circuit_breaker.check()
        result: AsyncResult[Any] = app.task_publisher.publish(
            target, request.message, request.args, request.kwargs, dict(options)
        )
    except TEMPORARY_ERRORS as error:
        _keep(app, request, error)
    except Exception as error:
        if not request.is_errback:
            note_failed()
            raise
        _refuse(app, request, error)
    else:
        return result
    return app.AsyncResult(options.get("task_id") or "")  # type: ignore[no-any-return]


def _keep(app: Any, request: FollowUpRequest, error: Exception) -> None:
    """Keep a follow-up that cannot be sent now."""
    recorded = not isinstance(error, StoreUnavailable) or _record(app, request)
    for name in _CONNECTION_OPTIONS:
        request.options.pop(name, None)
    message = request.complete_message
    follow_up = FollowUp(
        message_id=message.message_id,
        what=f"message {message.message_id} to {request.target}",
        send=partial(_send_later, app, request),
        refuse=partial(_refuse, app, request),
        expires_at=message.expires_at,
        recorded=recorded and app.settings.database_url is not None,
    )
    app.follow_ups.keep(follow_up, error)


def send_ordinary_follow_up(
    app: Any, name: str, options: dict[str, Any], send: Callable[[], AsyncResult[Any]]
) -> AsyncResult[Any]:
    """Send an ordinary Celery task that follows a handler, or keep it while the broker does not answer.

    Args:
        app: the application, an AgentApp.
        name: name of the task.
        options: the options of ``send_task``.
        send: sends it.
    """
    try:
        return send()
    except TEMPORARY_ERRORS as error:
        for each in _CONNECTION_OPTIONS:
            options.pop(each, None)
        id_ = str(options.get("task_id") or "")
        what = f"the task {name}[{id_}]"
        follow_up = FollowUp(message_id=id_, what=what, send=send, refuse=partial(_log_refused, what))
        app.follow_ups.keep(follow_up, error)
        return app.AsyncResult(id_)  # type: ignore[no-any-return]


def send_unless_sent(app: Any, message_id: str, send: Callable[[], object]) -> None:
    """Send a kept message, unless the ledger's recovery has sent it.

    Args:
        app: the application, an AgentApp.
        message_id: id of the message.
        send: sends it.

    Raises:
        StoreUnavailable: ledger or store does not answer.
        WaooawError: what ``send`` raises.
    """
    if _is_spooled(app, message_id):
        raise AuditUnavailable("its row is still in the spool")
    try:
        if app.receipts.get(message_id).status is not MessageStatus.PENDING:
            return
    except UnknownMessage:
        pass
    send()


def _send_later(app: Any, request: FollowUpRequest) -> None:
    message = request.complete_message
    task = request.target, message, request.args, request.kwargs, dict(request.options)
    send = partial(app.task_publisher.publish_kept, *task)
    send_unless_sent(app, message.message_id, send)


def _record(app: Any, request: FollowUpRequest) -> bool:
    """Record a follow-up in the ledger or its spool, and return whether that was possible."""
    try:
        if not _is_spooled(app, request.complete_message.message_id):
            app.task_publisher.record(request.target, request.message, request.args, request.options)
    except StoreUnavailable as error:
        extra = {"action": "follow_up_not_recorded"}
        logger.warning(
            "a message to %s is kept only in memory, and is lost if this process ends: %s",
            request.target,
            error,
            extra=extra,
        )
        return False
    return True


def _is_spooled(app: Any, message_id: str) -> bool:
    return app.settings.database_url is not None and message_id in app.ledger.spool.message_ids()


def _refuse(app: Any, request: FollowUpRequest, error: Exception) -> None:
    """Make a dead letter of a follow-up that can never be sent; never raises."""
    what = f"the follow-up to {request.target}"
    if request.message is None:
        _log_refused(what, error)
        return
    dead_letter = partial(_dead_letter, app, request, f"it could not be sent: {error}")
    try:
        dead_letter()
    except TEMPORARY_ERRORS as outage:
        follow_up = FollowUp(
            message_id=request.message.message_id,
            what=f"the dead letter of message {request.message.message_id}",
            send=dead_letter,
            refuse=partial(_log_refused, what),
        )
        app.follow_ups.keep(follow_up, outage)
    except Exception as failure:  # noqa: BLE001 - Celery is handling a failure, and must go on
        _log_refused(what, failure)


def _dead_letter(app: Any, request: FollowUpRequest, reason: str) -> None:
    message, options = request.complete_message, request.options
    app.task_publisher.record(request.target, message, request.args, options)
    callbacks = {name: options[option] for option, name in _CALLBACK_FIELDS.items() if options.get(option)}
    item = item_of(app, str(request.target), message, (request.args, request.kwargs, callbacks))
    app.dead_letters.bury(agent_queue(request.target.agent).name, reason, item)


def _log_refused(what: str, error: Exception) -> None:
    logger.error("%s can never be sent: %s", what, error, extra={"action": "follow_up_refused"})
