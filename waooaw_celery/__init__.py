"""Messaging between AI agents over Celery: Celery and Kombu carry, PostgreSQL remembers.

Each name is imported when it is first used, so that ``import waooaw_celery`` costs no more than ``import celery``.
``waooaw_celery.agents`` offers these names and all other public ones. ``waooaw_celery.aio`` has the operations as
coroutines.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from waooaw_celery.agents.agent import Agent
    from waooaw_celery.agents.bus import MessageBus
    from waooaw_celery.agents.events.bus import EventBus
    from waooaw_celery.agents.requests.handler import RequestResponseHandler
    from waooaw_celery.app.app import AgentApp, create_app
    from waooaw_celery.errors import RateLimitExceeded, RemoteError, RequestTimeout, WaooawError
    from waooaw_celery.ledger.trail import MessageAuditTrail
    from waooaw_celery.limits.limiter import RateLimiter
    from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority, RetentionPolicy
    from waooaw_celery.messages.message import Message
    from waooaw_celery.wire.serializer import MessageSerializer
    from waooaw_celery.worker.current_task import current_message
    from waooaw_celery.worker.retries.retry_policy import RetryPolicy

#: Each public name, and the module that defines it.
_MODULES = {
    "Agent": "waooaw_celery.agents.agent",
    "AgentApp": "waooaw_celery.app.app",
    "EventBus": "waooaw_celery.agents.events.bus",
    "Message": "waooaw_celery.messages.message",
    "MessageAuditTrail": "waooaw_celery.ledger.trail",
    "MessageBus": "waooaw_celery.agents.bus",
    "MessageSerializer": "waooaw_celery.wire.serializer",
    "MessageStatus": "waooaw_celery.messages.enums",
    "MessageType": "waooaw_celery.messages.enums",
    "Priority": "waooaw_celery.messages.enums",
    "RateLimitExceeded": "waooaw_celery.errors",
    "RateLimiter": "waooaw_celery.limits.limiter",
    "RemoteError": "waooaw_celery.errors",
    "RequestResponseHandler": "waooaw_celery.agents.requests.handler",
    "RequestTimeout": "waooaw_celery.errors",
    "RetentionPolicy": "waooaw_celery.messages.enums",
    "RetryPolicy": "waooaw_celery.worker.retries.retry_policy",
    "WaooawError": "waooaw_celery.errors",
    "create_app": "waooaw_celery.app.app",
    "current_message": "waooaw_celery.worker.current_task",
}

__all__ = [
    "Agent",
    "AgentApp",
    "EventBus",
    "Message",
    "MessageAuditTrail",
    "MessageBus",
    "MessageSerializer",
    "MessageStatus",
    "MessageType",
    "Priority",
    "RateLimitExceeded",
    "RateLimiter",
    "RemoteError",
    "RequestResponseHandler",
    "RequestTimeout",
    "RetentionPolicy",
    "RetryPolicy",
    "WaooawError",
    "create_app",
    "current_message",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name == "aio":  # a module, offered as an attribute too
        return import_module("waooaw_celery.aio")
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
