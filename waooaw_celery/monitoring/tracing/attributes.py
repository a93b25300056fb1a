"""The attributes of a message's spans: names and ids, never a payload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from waooaw_celery.messages.message import FOREIGN_SENDER, Message


def message_attributes(message: Message, handler: str) -> dict[str, Any]:
    """Return the attributes of the span that sends a message.

    Args:
        message: the message.
        handler: the name of its handler.
    """
    return {
        "messaging.message.id": message.message_id,
        "messaging.message.conversation_id": message.conversation_id or message.message_id,
        "waooaw.correlation_id": message.correlation_id or message.message_id,
        "waooaw.from_agent": message.from_agent,
        "waooaw.to_agent": message.to_agent,
        "waooaw.handler": handler,
        "waooaw.message_type": message.message_type.value,
        "waooaw.priority": message.priority.name,
    }


def request_attributes(task: Any, request: Any, envelope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of the span that handles a message, without decoding its payload.

    Args:
        task: the handler, an AgentTask.
        request: Celery's request.
        envelope: the envelope among its headers; empty for a message of another program.
    """
    attributes = {
        "messaging.message.id": str(request.id),
        "messaging.message.conversation_id": str(request.root_id or request.id),
        "waooaw.correlation_id": envelope.get("correlation_id") or str(request.id),
        "waooaw.from_agent": envelope.get("from", FOREIGN_SENDER),
        "waooaw.to_agent": task.agent,
        "waooaw.handler": task.handler,
        "waooaw.message_type": envelope.get("type"),
        "waooaw.priority": envelope.get("priority"),
        "waooaw.attempt": (request.retries or 0) + 1,
    }
    return {name: value for name, value in attributes.items() if isinstance(value, str | int)}
