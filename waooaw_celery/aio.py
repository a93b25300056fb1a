"""The operations as coroutines, for programs that run on asyncio and for ``async def`` handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from waooaw_celery.agents.aio import EventBus, MessageBus, RateLimiter, RequestResponseHandler

if TYPE_CHECKING:
    from waooaw_celery.agents.aio_trail import MessageAuditTrail

__all__ = ["EventBus", "MessageAuditTrail", "MessageBus", "RateLimiter", "RequestResponseHandler"]


def __getattr__(name: str) -> Any:
    """Import ``MessageAuditTrail`` when it is first used: it loads SQLAlchemy."""
    if name != "MessageAuditTrail":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from waooaw_celery.agents.aio_trail import MessageAuditTrail

    return MessageAuditTrail
