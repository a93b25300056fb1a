"""The verbs as coroutines, for programs that run on asyncio and for ``async def`` handlers."""

from __future__ import annotations

from waooaw_celery.agents.aio import EventBus, MessageAuditTrail, MessageBus, RateLimiter, RequestResponseHandler

__all__ = ["EventBus", "MessageAuditTrail", "MessageBus", "RateLimiter", "RequestResponseHandler"]
