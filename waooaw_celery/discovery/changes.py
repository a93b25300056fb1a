"""What has changed about agents between two times."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from waooaw_celery.discovery.agent_info import AgentInfo
from waooaw_celery.discovery.snapshot import Snapshot
from waooaw_celery.messages.json_form import JsonForm


class ChangeKind(StrEnum):
    """What has changed about an agent."""

    ADDED = "added"
    REMOVED = "removed"
    STATUS = "status"
    HEALTH = "health"
    CAPABILITIES = "capabilities"
    WORKERS = "workers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(JsonForm):
    """A change of an agent.

    Attributes:
        kind: what has changed.
        agent: name of the agent.
        before: what was known about it; None: nothing.
        after: what is known about it; None: it was removed.
    """

    kind: ChangeKind
    agent: str
    before: AgentInfo | None
    after: AgentInfo | None


def changes_between(before: Snapshot, after: Snapshot) -> list[Change]:
    """Return what has changed between two snapshots, sorted by agent."""
    changes = []
    for name in sorted({*before.agents, *after.agents}):
        old, new = before.agents.get(name), after.agents.get(name)
        for kind in _kinds(old, new):
            changes.append(Change(kind=kind, agent=name, before=old, after=new))
    return changes


def _kinds(old: AgentInfo | None, new: AgentInfo | None) -> list[ChangeKind]:
    if old is None or new is None:
        return [ChangeKind.ADDED if old is None else ChangeKind.REMOVED]
    found = []
    if old.status != new.status or old.order != new.order:
        found.append(ChangeKind.STATUS)
    if old.health != new.health:
        found.append(ChangeKind.HEALTH)
    if old.capabilities != new.capabilities:
        found.append(ChangeKind.CAPABILITIES)
    if {each.node for each in old.workers} != {each.node for each in new.workers}:
        found.append(ChangeKind.WORKERS)
    return found
