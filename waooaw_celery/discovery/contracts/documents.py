"""The contracts of all agents as one JSON document, which a later one is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from waooaw_celery.discovery.agent_info import AgentInfo

#: The version of the document's form.
FORM = 1


def contracts_document(agents: Iterable[AgentInfo]) -> dict[str, Any]:
    """Return the contracts of agents: by agent its version, handlers, capabilities, and methods.

    Of a method that two versions of an agent have, the contract of the worker that was started last counts.

    Args:
        agents: the agents.
    """
    return {"contracts": FORM, "agents": {info.name: _agent(info) for info in agents}}


def _agent(info: AgentInfo) -> dict[str, Any]:
    return {
        "version": info.versions[-1] if info.versions else None,
        "handlers": list(info.handlers or ()),
        "capabilities": [
            {"name": each.name, "version": each.version, "method": each.method} for each in info.capabilities
        ],
        "methods": newest_contracts(info),
    }


def newest_contracts(info: AgentInfo) -> dict[str, Any]:
    """Return the contracts of an agent's methods, by name, those of the newest workers last."""
    known = [each for each in info.workers if each.profile is not None and each.facts is not None]
    known.sort(key=lambda each: each.facts.started_at.timestamp() if each.facts else 0.0)
    found: dict[str, Any] = {}
    for worker in known:
        found |= (worker.profile and worker.profile.contracts) or {}
    return dict(sorted(found.items()))
