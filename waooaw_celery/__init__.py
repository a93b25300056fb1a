"""Messaging between AI agents over Celery: Celery and Kombu carry, PostgreSQL remembers.

Each name is imported when it is first used, so that ``import waooaw_celery`` costs no more than ``import celery``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from waooaw_celery.agent import Agent
    from waooaw_celery.app import AgentApp, create_app
    from waooaw_celery.audit.trail import MessageAuditTrail
    from waooaw_celery.bus import MessageBus
    from waooaw_celery.errors import InvalidMessage, RateLimitExceeded, RemoteError, RequestTimeout, WaooawError
    from waooaw_celery.events.bus import EventBus
    from waooaw_celery.limits.limiter import RateLimiter
    from waooaw_celery.message import Message, MessageStatus, MessageType, Priority, RetentionPolicy
    from waooaw_celery.request_response import RequestResponseHandler
    from waooaw_celery.response import Response
    from waooaw_celery.worker.task import current_message

#: Each public name, and the module that defines it.
_MODULES = {
    "Agent": "waooaw_celery.agent",
    "AgentApp": "waooaw_celery.app",
    "EventBus": "waooaw_celery.events.bus",
    "InvalidMessage": "waooaw_celery.errors",
    "Message": "waooaw_celery.message",
    "MessageAuditTrail": "waooaw_celery.audit.trail",
    "MessageBus": "waooaw_celery.bus",
    "MessageStatus": "waooaw_celery.message",
    "MessageType": "waooaw_celery.message",
    "Priority": "waooaw_celery.message",
    "RateLimitExceeded": "waooaw_celery.errors",
    "RateLimiter": "waooaw_celery.limits.limiter",
    "RemoteError": "waooaw_celery.errors",
    "RequestResponseHandler": "waooaw_celery.request_response",
    "RequestTimeout": "waooaw_celery.errors",
    "Response": "waooaw_celery.response",
    "RetentionPolicy": "waooaw_celery.message",
    "WaooawError": "waooaw_celery.errors",
    "create_app": "waooaw_celery.app",
    "current_message": "waooaw_celery.worker.task",
}

__all__ = [
    "Agent",
    "AgentApp",
    "EventBus",
    "InvalidMessage",
    "Message",
    "MessageAuditTrail",
    "MessageBus",
    "MessageStatus",
    "MessageType",
    "Priority",
    "RateLimitExceeded",
    "RateLimiter",
    "RemoteError",
    "RequestResponseHandler",
    "RequestTimeout",
    "Response",
    "RetentionPolicy",
    "WaooawError",
    "create_app",
    "current_message",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
