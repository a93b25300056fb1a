"""Agents, messages, requests and events, and every other public name of the package.

A name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from waooaw_celery.agents.agent import Agent
    from waooaw_celery.agents.bus import Everyone, MessageBus
    from waooaw_celery.agents.events.bus import EventBus
    from waooaw_celery.agents.events.cloudevents import from_cloudevent, to_cloudevent
    from waooaw_celery.agents.events.delivery import Published
    from waooaw_celery.agents.requests.handler import RequestResponseHandler
    from waooaw_celery.agents.requests.response import Response
    from waooaw_celery.app.app import AgentApp, create_app
    from waooaw_celery.errors import (
        AuditUnavailable,
        BackendUnavailable,
        BlockingCall,
        BrokerUnavailable,
        Cancelled,
        CircularRequest,
        ClockSkew,
        ConfigurationError,
        DecodingFailed,
        DeliveryLimitExceeded,
        EncodingFailed,
        Expired,
        HandlerExited,
        InvalidMessage,
        InvalidSchema,
        NoHandler,
        NotStoppable,
        RateLimitExceeded,
        RemoteError,
        RequestError,
        RequestTimeout,
        RequeueLimitExceeded,
        SchemaViolation,
        StoreUnavailable,
        StreamBroken,
        UnknownAgent,
        UnknownDeadLetter,
        UnknownMessage,
        UnknownMethod,
        UnknownSender,
        UnknownSubscription,
        WaooawError,
    )
    from waooaw_celery.ledger.retention.holds import Hold, HoldKind
    from waooaw_celery.ledger.retention.removal import Removal
    from waooaw_celery.ledger.retention.retention import Retention
    from waooaw_celery.ledger.trail import MessageAuditTrail
    from waooaw_celery.limits.limiter import RateLimiter
    from waooaw_celery.limits.memory import MemoryStorage
    from waooaw_celery.maintenance.tasks import register_periodic_tasks
    from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority, RetentionPolicy
    from waooaw_celery.messages.message import Message
    from waooaw_celery.messages.receipt import DeliveryReceipt
    from waooaw_celery.messages.topics.schemas import SchemaCheck, TopicSchema
    from waooaw_celery.wire.serializer import MessageSerializer
    from waooaw_celery.worker.current_task import current_message
    from waooaw_celery.worker.execution.streaming import Final
    from waooaw_celery.worker.outcomes.retry_policy import Retries

#: Each public name, and the module that defines it.
_MODULES = {
    "Agent": "waooaw_celery.agents.agent",
    "AgentApp": "waooaw_celery.app.app",
    "AuditUnavailable": "waooaw_celery.errors",
    "BackendUnavailable": "waooaw_celery.errors",
    "BlockingCall": "waooaw_celery.errors",
    "BrokerUnavailable": "waooaw_celery.errors",
    "Cancelled": "waooaw_celery.errors",
    "CircularRequest": "waooaw_celery.errors",
    "ClockSkew": "waooaw_celery.errors",
    "ConfigurationError": "waooaw_celery.errors",
    "DecodingFailed": "waooaw_celery.errors",
    "DeliveryLimitExceeded": "waooaw_celery.errors",
    "DeliveryReceipt": "waooaw_celery.messages.receipt",
    "EncodingFailed": "waooaw_celery.errors",
    "EventBus": "waooaw_celery.agents.events.bus",
    "Everyone": "waooaw_celery.agents.bus",
    "Expired": "waooaw_celery.errors",
    "Final": "waooaw_celery.worker.execution.streaming",
    "HandlerExited": "waooaw_celery.errors",
    "Hold": "waooaw_celery.ledger.retention.holds",
    "HoldKind": "waooaw_celery.ledger.retention.holds",
    "InvalidMessage": "waooaw_celery.errors",
    "InvalidSchema": "waooaw_celery.errors",
    "MemoryStorage": "waooaw_celery.limits.memory",
    "Message": "waooaw_celery.messages.message",
    "MessageAuditTrail": "waooaw_celery.ledger.trail",
    "MessageBus": "waooaw_celery.agents.bus",
    "MessageSerializer": "waooaw_celery.wire.serializer",
    "MessageStatus": "waooaw_celery.messages.enums",
    "MessageType": "waooaw_celery.messages.enums",
    "NoHandler": "waooaw_celery.errors",
    "NotStoppable": "waooaw_celery.errors",
    "Priority": "waooaw_celery.messages.enums",
    "Published": "waooaw_celery.agents.events.delivery",
    "RateLimitExceeded": "waooaw_celery.errors",
    "RateLimiter": "waooaw_celery.limits.limiter",
    "RemoteError": "waooaw_celery.errors",
    "Removal": "waooaw_celery.ledger.retention.removal",
    "RequestError": "waooaw_celery.errors",
    "RequestResponseHandler": "waooaw_celery.agents.requests.handler",
    "RequestTimeout": "waooaw_celery.errors",
    "RequeueLimitExceeded": "waooaw_celery.errors",
    "Response": "waooaw_celery.agents.requests.response",
    "Retention": "waooaw_celery.ledger.retention.retention",
    "RetentionPolicy": "waooaw_celery.messages.enums",
    "Retries": "waooaw_celery.worker.outcomes.retry_policy",
    "SchemaCheck": "waooaw_celery.messages.topics.schemas",
    "SchemaViolation": "waooaw_celery.errors",
    "StoreUnavailable": "waooaw_celery.errors",
    "StreamBroken": "waooaw_celery.errors",
    "TopicSchema": "waooaw_celery.messages.topics.schemas",
    "UnknownAgent": "waooaw_celery.errors",
    "UnknownDeadLetter": "waooaw_celery.errors",
    "UnknownMessage": "waooaw_celery.errors",
    "UnknownMethod": "waooaw_celery.errors",
    "UnknownSender": "waooaw_celery.errors",
    "UnknownSubscription": "waooaw_celery.errors",
    "WaooawError": "waooaw_celery.errors",
    "create_app": "waooaw_celery.app.app",
    "current_message": "waooaw_celery.worker.current_task",
    "from_cloudevent": "waooaw_celery.agents.events.cloudevents",
    "register_periodic_tasks": "waooaw_celery.maintenance.tasks",
    "to_cloudevent": "waooaw_celery.agents.events.cloudevents",
}

__all__ = [
    "Agent",
    "AgentApp",
    "AuditUnavailable",
    "BackendUnavailable",
    "BlockingCall",
    "BrokerUnavailable",
    "Cancelled",
    "CircularRequest",
    "ClockSkew",
    "ConfigurationError",
    "DecodingFailed",
    "DeliveryLimitExceeded",
    "DeliveryReceipt",
    "EncodingFailed",
    "EventBus",
    "Everyone",
    "Expired",
    "Final",
    "HandlerExited",
    "Hold",
    "HoldKind",
    "InvalidMessage",
    "InvalidSchema",
    "MemoryStorage",
    "Message",
    "MessageAuditTrail",
    "MessageBus",
    "MessageSerializer",
    "MessageStatus",
    "MessageType",
    "NoHandler",
    "NotStoppable",
    "Priority",
    "Published",
    "RateLimitExceeded",
    "RateLimiter",
    "RemoteError",
    "Removal",
    "RequestError",
    "RequestResponseHandler",
    "RequestTimeout",
    "RequeueLimitExceeded",
    "Response",
    "Retention",
    "RetentionPolicy",
    "Retries",
    "SchemaCheck",
    "SchemaViolation",
    "StoreUnavailable",
    "StreamBroken",
    "TopicSchema",
    "UnknownAgent",
    "UnknownDeadLetter",
    "UnknownMessage",
    "UnknownMethod",
    "UnknownSender",
    "UnknownSubscription",
    "WaooawError",
    "create_app",
    "current_message",
    "from_cloudevent",
    "register_periodic_tasks",
    "to_cloudevent",
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
