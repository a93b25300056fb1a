"""Edges: agents of other worlds speak to ours, and ours to them, by A2A, MCP, HTTP and CloudEvents.

An edge is a bridge. What arrives becomes a message, a request or a workflow of an agent, with its id, and is
answered from the ledger.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from waooaw_celery.edges.a2a.remote.agent import RemoteAgent
    from waooaw_celery.edges.access.authentication import ApiKeys, FirstOf, TrustedProxy
    from waooaw_celery.edges.access.bearer_tokens import BearerTokens
    from waooaw_celery.edges.access.principal import Principal
    from waooaw_celery.edges.access.principals_file import read_principals
    from waooaw_celery.edges.application import Edge, EdgeOptions, Protocol, create_edge
    from waooaw_celery.edges.http.webhooks.signature import verify_webhook
    from waooaw_celery.edges.http.webhooks.subscription import webhook
    from waooaw_celery.edges.mcp.mcp_agent import McpAgent
    from waooaw_celery.edges.protection.bounds import Bounds

_MODULES = {
    "ApiKeys": "waooaw_celery.edges.access.authentication",
    "BearerTokens": "waooaw_celery.edges.access.bearer_tokens",
    "Bounds": "waooaw_celery.edges.protection.bounds",
    "Edge": "waooaw_celery.edges.application",
    "EdgeOptions": "waooaw_celery.edges.application",
    "FirstOf": "waooaw_celery.edges.access.authentication",
    "McpAgent": "waooaw_celery.edges.mcp.mcp_agent",
    "Principal": "waooaw_celery.edges.access.principal",
    "Protocol": "waooaw_celery.edges.application",
    "RemoteAgent": "waooaw_celery.edges.a2a.remote.agent",
    "TrustedProxy": "waooaw_celery.edges.access.authentication",
    "create_edge": "waooaw_celery.edges.application",
    "read_principals": "waooaw_celery.edges.access.principals_file",
    "verify_webhook": "waooaw_celery.edges.http.webhooks.signature",
    "webhook": "waooaw_celery.edges.http.webhooks.subscription",
}

__all__ = [
    "ApiKeys",
    "BearerTokens",
    "Bounds",
    "Edge",
    "EdgeOptions",
    "FirstOf",
    "McpAgent",
    "Principal",
    "Protocol",
    "RemoteAgent",
    "TrustedProxy",
    "create_edge",
    "read_principals",
    "verify_webhook",
    "webhook",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: each needs an extra."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
