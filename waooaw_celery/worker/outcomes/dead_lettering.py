"""Makes a dead letter of a message whose handler failed for the last time, so that it can be retried by hand."""

from __future__ import annotations

import json
from base64 import b64encode
from collections import OrderedDict
from functools import partial
from typing import Any

from celery.app.task import Context
from celery.worker import state as worker_state

from waooaw_celery.broker.dead_letters.dead_letter import CALLBACK_FIELDS
from waooaw_celery.errors import WaooawError
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import ENVELOPE_HEADER, Message
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.messages.references.reference import REFERENCE_SERIALIZER, reference_in
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER
from waooaw_celery.wire.codecs import NONE
from waooaw_celery.worker.outcomes.follow_ups import TEMPORARY_ERRORS, FollowUp
from waooaw_celery.worker.task import AgentTask

logger = get_logger(__name__)

#: How many dead letters a process remembers, because Celery reports some failures twice.
_MAX_RECENT = 1000
_dead_lettered: OrderedDict[str, None] = OrderedDict()


def request_of(task: AgentTask, task_id: str) -> Context | None:
    """Return the request of a task that has failed, or None when it is unknown.

    Celery's signal of a failure names the task's id, and does not always make its request current.

    Args:
        task: the handler.
        task_id: id of the message.
    """
    if task.request.id == task_id:
        return task.request
    known = worker_state.requests.get(task_id)
    return None if known is None else Context(known.request_dict)


def add_dead_letter(task: AgentTask, request: Context | None, reason: str) -> bool:
    """Make a dead letter of a message whose handler has failed, and return whether there is one. Never raises.

    A request gets no dead letter: its caller, or the handler of its reply, gets the error. While the broker does
    not answer, the dead letter is kept in this process and stored later.

    Args:
        task: the handler.
        request: its request; None: unknown.
        reason: why it failed, a sentence.
    """
    if request is None or _has_caller(task, request):
        return False
    message_id = str(request.id)
    if message_id in _dead_lettered:
        return True
    app: Any = task.app  # an AgentApp
    try:
        add = partial(app.dead_letters.add, agent_queue(task.agent).name, reason, _item(task, request))
        try:
            add()
        except TEMPORARY_ERRORS as error:
            what = f"the dead letter of {message_id}"
            refuse = partial(_log_refused, message_id)
            app.follow_ups.keep(FollowUp(message_id=message_id, what=what, send=add, refuse=refuse), error)
            return False
    except Exception as error:  # noqa: BLE001 - Celery is handling a failure, which must still be recorded
        _log_refused(message_id, error)
        return False
    _dead_lettered[message_id] = None
    while len(_dead_lettered) > _MAX_RECENT:
        _dead_lettered.popitem(last=False)
    return True


def _log_refused(message_id: str, error: Exception) -> None:
    logger.warning(
        "no dead letter is kept of %s, whose handler failed: %s",
        message_id,
        error,
        extra={"action": "letter_not_kept", "message_id": message_id},
    )


def _has_caller(task: AgentTask, request: Context) -> bool:
    """Return whether somebody gets the error as the answer of a request."""
    is_awaited = not (task.ignore_result or request.ignore_result)
    return is_awaited or (request.headers or {}).get(REPLY_TO_HEADER) is not None


def _item(task: AgentTask, request: Context) -> bytes:
    """Return a message in the form that its first attempt has on Redis."""
    callbacks = {name: request.get(name) for name in CALLBACK_FIELDS if request.get(name)}
    body = (request.args, request.kwargs, callbacks)
    envelope = (request.headers or {}).get(ENVELOPE_HEADER)
    try:
        message = task.message_of(request)
    except (WaooawError, TypeError, ValueError):  # its handler could not read it either
        encoding = _encoding(task.app, task.agent, request.args)
        ids = {"id": str(request.id), "root_id": request.root_id, "parent_id": request.parent_id}
        return _as_item(task.app, task.name, ids, envelope, body, encoding)
    return item_of(task.app, task.name, message, body, ids=request, has_envelope=envelope is not None)


def item_of(
    app: Any, task_name: str, message: Message, body: Any, *, ids: Any = None, has_envelope: bool = True
) -> bytes:
    """Return a message in the form that messages have on Redis.

    Args:
        app: the application, an AgentApp.
        task_name: name of its handler's task.
        message: the message.
        body: its task's arguments, keyword arguments, and callbacks.
        ids: the request that has its ids; None: the message's own.
        has_envelope: whether it carries its envelope.
    """
    encoding = _encoding(app, message.to_agent, body[0], message.serializer, message.compression)
    headers = {
        "id": str(message.message_id if ids is None else ids.id),
        "root_id": message.conversation_id if ids is None else ids.root_id,
        "parent_id": message.causation_id if ids is None else ids.parent_id,
    }
    return _as_item(app, task_name, headers, message.to_envelope() if has_envelope else None, body, encoding)


def _encoding(app: Any, agent: str, args: Any, *chosen: str | None) -> Any:
    """Return the serializer and the compression of a message; what it carries may be a reference."""
    return app.wire_format(agent, *chosen) if reference_in(args) is None else (REFERENCE_SERIALIZER, NONE)


def _as_item(app: Any, task_name: str, ids: dict[str, Any], envelope: Any, body: Any, encoding: Any) -> bytes:
    args, kwargs, callbacks = body
    packed = app.packer.pack((list(args or ()), dict(kwargs or {}), callbacks), *encoding)
    headers = {
        "lang": "py",
        "task": task_name,
        **ids,
        **({} if envelope is None else {ENVELOPE_HEADER: envelope}),
        **({} if packed.codec is None else {"compression": packed.codec}),
    }
    is_binary = isinstance(packed.body, bytes)
    item = {
        "body": b64encode(packed.body).decode() if isinstance(packed.body, bytes) else packed.body,
        "content-type": packed.content_type,
        "content-encoding": packed.content_encoding,
        "headers": headers,
        "properties": {"delivery_info": {}, "body_encoding": "base64" if is_binary else None},
    }
    return json.dumps(item).encode()
