"""Messages by HTTP: sent to an agent, and their receipts."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from waooaw_celery.agents.bus import MessageBus
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.application import EdgeContext
from waooaw_celery.edges.http import reading
from waooaw_celery.edges.http.problems import Problem
from waooaw_celery.edges.http.task_forms import receipt_form
from waooaw_celery.edges.http.tasks.idempotency import OTHER_REQUEST
from waooaw_celery.errors import InvalidMessage, UnknownMessage
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import SENDABLE, MessageType, Priority
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.messages.topics.plain_json import as_json
from waooaw_celery.messages.validation import check_id
from waooaw_celery.worker.execution.threads import run_in_thread

#: Longest time to live of a message from outside, in seconds: a month.
MAX_TTL = 31 * 86_400.0
_FIELDS = frozenset({"type", "payload", "priority", "ttl_seconds", "conversation_id", "correlation_id"})


class Messages:
    """Answers what concerns messages.

    Args:
        context: the edge.
    """

    def __init__(self, context: EdgeContext) -> None:
        self._catalogue = context.gateway.catalogue
        self._bus, self._trail = MessageBus(context.gateway.app), MessageAuditTrail(context.gateway.app.ledger)

    async def send(self, request: Request) -> Response:
        """Answer ``POST /v1/agents/{agent}/messages``."""
        principal = reading.principal_of(request)
        body = await reading.json_of(request, default={})
        key = reading.idempotency_key(request)
        message = _message(principal, request.path_params["agent"], body, str(reading.id_for(principal, key)))
        principal.check_may_call(message.to_agent, message.message_type.value)
        receipt = await asyncio.wrap_future(run_in_thread(self._send, message, has_key=key is not None))
        path = f"{request.scope.get('root_path', '')}/v1/receipts/{receipt.message_id}"
        return JSONResponse(receipt_form(receipt), 202, {"Location": path})

    async def receipt(self, request: Request) -> Response:
        """Answer ``GET /v1/receipts/{id}``: only of a message in the name of the principal's agent."""
        principal, id_ = reading.principal_of(request), check_id(request.path_params["id"], "the id of a message")
        receipt = await asyncio.wrap_future(run_in_thread(self._bus.receipt, id_))
        if receipt.from_agent != principal.from_agent:
            raise UnknownMessage(f"there is no message {id_}")  # whether another has it is nobody's business
        return JSONResponse(receipt_form(receipt))

    def _send(self, message: Message, *, has_key: bool) -> DeliveryReceipt:
        self._catalogue.agent(message.to_agent)
        if has_key and (known := self._known(message)) is not None:
            return known
        try:
            return self._bus.send(message)
        except InvalidMessage:
            known = self._known(message) if has_key else None  # another process was faster
            if known is None:
                raise
            return known

    def _known(self, message: Message) -> DeliveryReceipt | None:
        """Return the receipt of a message that was sent before with the same key; None: there is none.

        Raises:
            Problem: it is another message.
        """
        try:
            record = self._trail.receipt(message.message_id)
        except UnknownMessage:
            return None
        receipt = record.receipt
        payload = self._trail.payload(message.message_id) if record.reference is not None else record.payload
        if (receipt.from_agent, receipt.to_agent, receipt.handler) != (
            message.from_agent,
            message.to_agent,
            message.message_type.value,
        ) or as_json(payload, str) != as_json(message.payload, str):
            raise Problem(422, OTHER_REQUEST)
        return receipt


def _message(principal: Principal, agent: str, body: Any, message_id: str) -> Message:
    if not isinstance(body, dict):
        raise Problem(400, f"the body must be a JSON object with {', '.join(sorted(_FIELDS))}")
    if unknown := set(body) - _FIELDS:
        raise Problem(400, f"{min(unknown)!r:.80} is no field of a message: it has {', '.join(sorted(_FIELDS))}")
    type_ = body.get("type", MessageType.COMMAND.value)
    types = {each.value: each for each in SENDABLE}
    if not isinstance(type_, str) or type_.lower() not in types:
        raise Problem(400, f"type must be {', '.join(types)}, not {type_!r:.80}")
    ttl = body.get("ttl_seconds", 300.0)
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl <= MAX_TTL:
        raise Problem(400, f"ttl_seconds must be a number of seconds, at most {MAX_TTL:.0f}")
    return Message(
        from_agent=principal.from_agent,
        to_agent=agent,
        message_type=types[type_.lower()],
        payload=body.get("payload", {}),
        priority=Priority.of(body.get("priority", Priority.NORMAL)),
        ttl_seconds=float(ttl),
        message_id=message_id,
        conversation_id=body.get("conversation_id"),
        correlation_id=body.get("correlation_id"),
        identity=principal.identity("http"),
    )
