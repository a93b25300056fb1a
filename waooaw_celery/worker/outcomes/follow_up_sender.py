"""How Celery's follow-ups of a message are sent: never so that a failure to send one ends the message's worker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from celery.result import AsyncResult

from waooaw_celery.errors import AuditUnavailable, InvalidMessage, StoreUnavailable, UnknownMessage
from waooaw_celery.messages.message import Message, MessageStatus
from waooaw_celery.messages.queues import HandlerName, agent_queue
from waooaw_celery.worker.current_task import is_errback, note_failed
from waooaw_celery.worker.outcomes.dead_lettering import item_of
from waooaw_celery.worker.outcomes.follow_ups import NOT_NOW, FollowUp

logger = logging.getLogger(__name__)

#: Options of ``send_task`` that belong to the moment in which it was called.
_OF_THE_MOMENT = ("producer", "connection", "publisher")
#: By the options of ``send_task``, what Celery's message calls what is called afterwards.
_CALLING = {"link": "callbacks", "link_error": "errbacks", "chain": "chain", "chord": "chord"}


@dataclass(slots=True)
class FollowUpRequest:
    """A task that is to be sent to an agent, as ``send_task`` was called."""

    target: HandlerName
    args: Any
    kwargs: Any
    options: dict[str, Any]
    message: Message | None
    is_errback: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_errback = is_errback(str(self.target), self.args)

    @property
    def said(self) -> Message:
        """The complete message.

        Raises:
            InvalidMessage: none could be made.
        """
        if self.message is None:
            raise InvalidMessage(f"no message to {self.target} could be made")
        return self.message


def send_follow_up(app: Any, sending: FollowUpRequest) -> AsyncResult[Any]:
    """Send what follows a handler's end: an errback, a callback, the next step of a chain, the body of a chord.

    What cannot be sent now, since broker or ledger is away or takes nothing, is kept and sent later. An errback
    that can never be sent becomes a dead letter.

    Args:
        app: the application, an AgentApp.
        sending: what is to be sent.

    Raises:
        WaooawError: a callback, or the next step of a chain, can never be sent: its message fails.
    """
    target, options = sending.target, sending.options
    try:
        sending.message = app.new_message(target, sending.args, sending.kwargs, options, sending.message)
        options["task_id"] = sending.message.message_id
        app.circuit_breaker.check()
        result: AsyncResult[Any] = app.send_new(
            target, sending.message, sending.args, sending.kwargs, dict(options)
        )
    except NOT_NOW as error:
        recorded = not isinstance(error, StoreUnavailable) or _record(app, sending)
        for name in _OF_THE_MOMENT:
            options.pop(name, None)
        follow_up = FollowUp(
            message_id=sending.said.message_id,
            what=f"the message {sending.said.message_id} to {target}",
            send=partial(_send_again, app, sending),
            refuse=partial(_refuse, app, sending),
            expires_at=sending.said.expires_at,
            recorded=recorded and app.settings.database_url is not None,
        )
        app.follow_ups.keep(follow_up, error)
    except Exception as error:
        if not sending.is_errback:
            note_failed()
            raise
        _refuse(app, sending, error)
    else:
        return result
    return app.AsyncResult(options.get("task_id") or "")  # type: ignore[no-any-return]


def send_ordinary_follow_up(
    app: Any, name: str, options: dict[str, Any], send: Callable[[], AsyncResult[Any]]
) -> AsyncResult[Any]:
    """Send an ordinary Celery task that follows a handler's end, or keep it while the broker is away.

    Args:
        app: the application, an AgentApp.
        name: of the task.
        options: those with which it is sent.
        send: sends it.
    """
    try:
        return send()
    except NOT_NOW as error:
        for each in _OF_THE_MOMENT:
            options.pop(each, None)
        id_ = str(options.get("task_id") or "")
        what = f"the task {name}[{id_}]"
        follow_up = FollowUp(message_id=id_, what=what, send=send, refuse=partial(_tell_refused, what))
        app.follow_ups.keep(follow_up, error)
        return app.AsyncResult(id_)  # type: ignore[no-any-return]


def _record(app: Any, sending: FollowUpRequest) -> bool:
    """Write a follow-up down where that is possible, in the spool if need be; return whether it is."""
    try:
        if not _is_spooled(app, sending.said.message_id):
            app.record_task(sending.target, sending.message, sending.args, sending.options)
    except StoreUnavailable as error:
        extra = {"action": "follow_up_not_recorded"}
        logger.warning("a message to %s is only kept in memory: %s", sending.target, error, extra=extra)
        return False
    return True


def _is_spooled(app: Any, message_id: str) -> bool:
    return app.settings.database_url is not None and message_id in app.ledger.spool.message_ids()


def send_unless_sent(app: Any, message_id: str, send: Callable[[], object]) -> None:
    """Send a message that was kept, unless the ledger's recovery has sent it meanwhile.

    Args:
        app: the application, an AgentApp.
        message_id: of the message.
        send: sends it.

    Raises:
        StoreUnavailable: ledger or store is away.
        WaooawError: what ``send`` raises.
    """
    if _is_spooled(app, message_id):
        raise AuditUnavailable("it is on its way to the ledger")
    try:
        if app.receipts.get(message_id).status is not MessageStatus.PENDING:
            return
    except UnknownMessage:
        pass
    send()


def _send_again(app: Any, sending: FollowUpRequest) -> None:
    send = partial(app.send_new, sending.target, sending.said, sending.args, sending.kwargs, dict(sending.options))
    send_unless_sent(app, sending.said.message_id, send)


def _refuse(app: Any, sending: FollowUpRequest, error: Exception) -> None:
    """Make a dead letter of a follow-up that can never be sent; never raises."""
    what = f"what follows a failure, the message to {sending.target},"
    if sending.message is None:
        _tell_refused(what, error)
        return
    try:
        _bury(app, sending, f"it could not be sent: {error}")
    except NOT_NOW as away:
        follow_up = FollowUp(
            message_id=sending.message.message_id,
            what=f"the dead letter of message {sending.message.message_id}",
            send=partial(_bury, app, sending, f"it could not be sent: {error}"),
            refuse=partial(_tell_refused, what),
        )
        app.follow_ups.keep(follow_up, away)
    except Exception as wrong:  # noqa: BLE001 - Celery is in the middle of a failure
        _tell_refused(what, wrong)


def _bury(app: Any, sending: FollowUpRequest, reason: str) -> None:
    message, options = sending.said, sending.options
    app.record_task(sending.target, message, sending.args, options)
    after = {name: options[option] for option, name in _CALLING.items() if options.get(option)}
    item = item_of(app, str(sending.target), message, (sending.args, sending.kwargs, after))
    app.dead_letters.bury(agent_queue(sending.target.agent).name, reason, item)


def _tell_refused(what: str, error: Exception) -> None:
    logger.error("%s can never be sent: %s", what, error, extra={"action": "follow_up_refused"})
