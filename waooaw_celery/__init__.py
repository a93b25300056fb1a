"""Messaging between AI agents over Celery: Celery and Kombu carry, PostgreSQL remembers."""

from __future__ import annotations

from waooaw_celery.agent import Agent
from waooaw_celery.app import AgentApp, create_app
from waooaw_celery.audit.trail import MessageAuditTrail
from waooaw_celery.bus import MessageBus
from waooaw_celery.errors import (
    InvalidMessage,
    RateLimitExceeded,
    RemoteError,
    RequestTimeout,
    WaooawError,
)
from waooaw_celery.events.bus import EventBus
from waooaw_celery.limits.limiter import RateLimiter
from waooaw_celery.message import Message, MessageStatus, MessageType, Priority, RetentionPolicy
from waooaw_celery.request_response import RequestResponseHandler
from waooaw_celery.response import Response
from waooaw_celery.worker.task import current_message

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
