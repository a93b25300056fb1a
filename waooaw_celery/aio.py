"""The operations as coroutines, for programs that run on asyncio and for ``async def`` handlers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from waooaw_celery.agents.aio import (
    AgentPool,
    EventBus,
    MessageBus,
    RateLimiter,
    Registry,
    RequestResponseHandler,
)

if TYPE_CHECKING:
    from waooaw_celery.agents.aio_trail import MessageAuditTrail
    from waooaw_celery.agents.aio_workflows import Workflows

__all__ = [
    "AgentPool",
    "EventBus",
    "MessageAuditTrail",
    "MessageBus",
    "RateLimiter",
    "Registry",
    "RequestResponseHandler",
    "Workflows",
]

#: The names that load SQLAlchemy, each with its module: they are imported when they are first used.
_MODULES = {
    "MessageAuditTrail": "waooaw_celery.agents.aio_trail",
    "Workflows": "waooaw_celery.agents.aio_workflows",
}


def __getattr__(name: str) -> Any:
    """Import a name that loads SQLAlchemy when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
