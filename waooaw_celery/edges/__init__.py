"""Edges: agents of other worlds speak to ours, and ours to them, by A2A, MCP, HTTP and CloudEvents.

An edge is a bridge. What arrives becomes a message, a request or a workflow of an agent, with its id, and is
answered from the ledger.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from waooaw_celery.edges.a2a.remote.agent import RemoteAgent
    from waooaw_celery.edges.application import Edge, EdgeOptions, Protocol, create_edge

_MODULES = {
    "Edge": "waooaw_celery.edges.application",
    "EdgeOptions": "waooaw_celery.edges.application",
    "Protocol": "waooaw_celery.edges.application",
    "RemoteAgent": "waooaw_celery.edges.a2a.remote.agent",
    "create_edge": "waooaw_celery.edges.application",
}

__all__ = ["Edge", "EdgeOptions", "Protocol", "RemoteAgent", "create_edge"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: each needs an extra."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
