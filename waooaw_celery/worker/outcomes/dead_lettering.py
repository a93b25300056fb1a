"""What a handler gave up, and would otherwise be gone: it becomes a dead letter, which can be retried."""

from __future__ import annotations

import json
import logging
from base64 import b64encode
from collections import OrderedDict
from functools import partial
from typing import Any

from celery.app.task import Context
from celery.worker import state as worker_state

from waooaw_celery.broker.dead_letters.dead_letter import CALLBACK_FIELDS
from waooaw_celery.errors import WaooawError
from waooaw_celery.messages.message import ENVELOPE_HEADER, Message
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.messages.reply_to import REPLY_TO_HEADER
from waooaw_celery.worker.outcomes.follow_ups import NOT_NOW, FollowUp
from waooaw_celery.worker.task import AgentTask

logger = logging.getLogger(__name__)

#: Messages whose letters a process remembers: Celery tells some failures twice.
_REMEMBERED = 1000
_kept: OrderedDict[str, None] = OrderedDict()


def request_of(task: AgentTask, task_id: str) -> Context | None:
    """Return the request of a task that has failed: Celery's signal does not always say which it tells of."""
    if task.request.id == task_id:
        return task.request
    known = worker_state.requests.get(task_id)
    return None if known is None else Context(known.request_dict)


def keep_dead_letter(task: AgentTask, request: Context | None, reason: str) -> bool:
    """Make a dead letter of a message whose handler gave it up, and return whether there is one.

    Not of a request, whose caller is told of the error; also when the answer comes as a message. Never raises.

    Args:
        task: the handler.
        request: its request; None when nobody knows it.
        reason: why, a sentence.
    """
    if request is None or _is_told(task, request):
        return False
    message_id = str(request.id)
    if message_id in _kept:
        return True
    app: Any = task.app  # an AgentApp, which stands above here
    try:
        add = partial(app.dead_letters.add, agent_queue(task.agent).name, reason, _item(task, request))
        try:
            add()
        except NOT_NOW as error:
            what = f"the dead letter of {message_id}"
            refuse = partial(_tell_refused, message_id)
            app.follow_ups.keep(FollowUp(message_id=message_id, what=what, send=add, refuse=refuse), error)
            return False
    except Exception as error:  # noqa: BLE001 - Celery is in the middle of a failure, and the ledger is still to be told
        _tell_refused(message_id, error)
        return False
    _kept[message_id] = None
    while len(_kept) > _REMEMBERED:
        _kept.popitem(last=False)
    return True


def _tell_refused(message_id: str, error: Exception) -> None:
    logger.warning(
        "no dead letter is kept of %s, whose handler gave up: %s",
        message_id,
        error,
        extra={"action": "letter_not_kept", "message_id": message_id},
    )


def _is_told(task: AgentTask, request: Context) -> bool:
    """Whether somebody gets the error as the answer of a request."""
    waited_for = not (task.ignore_result or request.ignore_result)
    return waited_for or (request.headers or {}).get(REPLY_TO_HEADER) is not None


def _item(task: AgentTask, request: Context) -> bytes:
    """Return a message as it would travel on Redis for its first attempt."""
    after = {name: request.get(name) for name in CALLBACK_FIELDS if request.get(name)}
    said = (request.args, request.kwargs, after)
    envelope = (request.headers or {}).get(ENVELOPE_HEADER)
    try:
        message = task.message_of(request)
    except (WaooawError, TypeError, ValueError):  # what its handler could not read either
        ways = task.app.wire_format(task.agent)  # type: ignore[attr-defined]  # an AgentApp
        ids = {"id": str(request.id), "root_id": request.root_id, "parent_id": request.parent_id}
        return _as_item(task.app, task.name, ids, envelope, said, ways)
    return item_of(task.app, task.name, message, said, ids=request, has_envelope=envelope is not None)


def item_of(
    app: Any, task_name: str, message: Message, said: Any, *, ids: Any = None, has_envelope: bool = True
) -> bytes:
    """Return a message as it would travel on Redis.

    Args:
        app: the application, an AgentApp.
        task_name: of its handler.
        message: the message.
        said: its task's arguments, keyword arguments, and what is called afterwards.
        ids: the request that has its ids; None: the message's own.
        has_envelope: whether it travels with its envelope.
    """
    ways = app.wire_format(message.to_agent, message.serializer, message.compression)
    headers = {
        "id": str(message.message_id if ids is None else ids.id),
        "root_id": message.conversation_id if ids is None else ids.root_id,
        "parent_id": message.causation_id if ids is None else ids.parent_id,
    }
    return _as_item(app, task_name, headers, message.to_envelope() if has_envelope else None, said, ways)


def _as_item(app: Any, task_name: str, ids: dict[str, Any], envelope: Any, said: Any, ways: Any) -> bytes:
    args, kwargs, after = said
    body = app.packer.pack((list(args or ()), dict(kwargs or {}), after), *ways)
    headers = {
        "lang": "py",
        "task": task_name,
        **ids,
        **({} if envelope is None else {ENVELOPE_HEADER: envelope}),
        **({} if body.codec is None else {"compression": body.codec}),
    }
    packed = isinstance(body.body, bytes)
    item = {
        "body": b64encode(body.body).decode() if isinstance(body.body, bytes) else body.body,
        "content-type": body.content_type,
        "content-encoding": body.content_encoding,
        "headers": headers,
        "properties": {"delivery_info": {}, "body_encoding": "base64" if packed else None},
    }
    return json.dumps(item).encode()
