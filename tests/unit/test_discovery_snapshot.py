"""What others conclude from what the store has about an agent, and which agents are candidates."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from waooaw_celery.agents import AgentInfo, AgentStatus, Capability, CapabilityAddress, Health
from waooaw_celery.discovery.agent_info import info_of, is_unchanged
from waooaw_celery.discovery.declaration import Profile, make_profile
from waooaw_celery.discovery.health.assessment import assess
from waooaw_celery.discovery.health.checks import CheckResult
from waooaw_celery.discovery.health.outcomes import Outcomes, Summary
from waooaw_celery.discovery.health.state import WorkerFacts
from waooaw_celery.discovery.snapshot import Snapshot
from waooaw_celery.store.agents.record import AgentRecord

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
STARTED = NOW - timedelta(hours=1)


def profile(**declared: Any) -> Profile:
    """Return what an agent declares: the capability ``sum`` in version 2 unless another is given."""
    return make_profile(**{"capabilities": [Capability(name="sum", version="2", method="add")], **declared})


def record(
    name: str, *workers: tuple[WorkerFacts | None, Profile], order: Any = None, silent: float = 1
) -> AgentRecord:
    """Return what the store has about an agent, whose workers sent a heartbeat some seconds ago."""
    nodes = [f"{name}@{number}" for number in range(len(workers))]
    reports: dict[str, Any] = {
        node: {"profile": each.digest()} | ({} if facts is None else {"discovery": facts.to_dict()})
        for node, (facts, each) in zip(nodes, workers, strict=True)
    }
    return AgentRecord(
        name=name,
        handlers=("add", "command"),
        declared_at=STARTED,
        last_seen=NOW,
        workers=tuple(nodes),
        read_at=NOW,
        reports=reports,
        worker_handlers=dict.fromkeys(nodes, ("add", "command")),
        alive_until=dict.fromkeys(nodes, NOW + timedelta(seconds=15 - silent)),
        order=order,
    )


def facts(health: Health = Health.HEALTHY, **changes: Any) -> WorkerFacts:
    """Return what a worker reports."""
    return replace(WorkerFacts(started_at=STARTED, ttl=15, heartbeat=5, health=health), **changes)


def info(name: str, *workers: tuple[WorkerFacts | None, Profile], **options: Any) -> AgentInfo:
    """Return what is known about an agent."""
    return info_of(record(name, *workers, **options), {each.digest(): each for _, each in workers})


def refusal(*agents: AgentInfo, address: str = "capability:sum", **options: Any) -> dict[str, str]:
    """Return why agents are no candidates."""
    snapshot = Snapshot({each.name: each for each in agents}, 0.0)
    found = snapshot.candidates(CapabilityAddress.of(address), options.get("handler"), options.get("method"))
    assert {*found.names, *found.refused} == {each.name for each in agents}
    return dict(found.refused)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (info("a", (facts(), profile())), None),
        (info("a", (facts(Health.DEGRADED), profile())), None),
        (info("a", (facts(Health.UNHEALTHY, reasons=("broken",)), profile())), "it is unhealthy (a@0: broken)"),
        (info("a", (facts(Health.UNKNOWN, reasons=("not yet",)), profile())), "it is unknown (a@0: not yet)"),
        (info("a", (None, profile())), "it is unhealthy (a@0: its heartbeat does not report its health)"),
        (info("a", (facts(Health.UNHEALTHY), profile()), (facts(), profile())), None),
        (info("a", (facts(), profile(weight=0))), "its weight is 0"),
        (info("a", (facts(), profile()), order={"weight": 0}), "its weight is 0"),
        (info("a", (facts(), profile(weight=0)), order={"weight": 1}), None),
        (info("a", (facts(draining=True), profile())), "it is draining"),
        (info("a", (facts(draining=True), profile()), (facts(), profile())), None),
        (info("a", (facts(), profile()), silent=12), None),
        (info("a", (facts(running=3), profile(max_in_flight=3))), None),
    ],
)
def test_who_is_a_candidate(found: AgentInfo, reason: str | None) -> None:
    """An agent whose checks have not run is none; a DEGRADED or BUSY one is, and one with a healthy worker."""
    assert refusal(found).get("a") == reason


def test_a_silent_worker_is_degraded_before_its_time_to_live_ends() -> None:
    """Two heartbeats may be missed, and one more second."""
    assert info("a", (facts(), profile()), silent=10.9).health is Health.HEALTHY
    found = info("a", (facts(), profile()), silent=11.1)
    assert (found.health, found.status) == (Health.DEGRADED, AgentStatus.ONLINE)
    assert found.reasons == ("a@0: no heartbeat for 11 s",)


def test_an_order_to_drain_holds_for_workers_that_were_started_before_it() -> None:
    """A worker that starts later makes the agent ONLINE again."""
    order = {"status": {"status": "draining", "by": "ada", "since": NOW.isoformat(), "reason": "update"}}
    found = info("a", (facts(), profile()), order=order)
    assert found.status is AgentStatus.DRAINING
    assert found.reasons == ("ada set it to draining at 2026-01-01 12:00:00 UTC: update",)
    later = facts(started_at=NOW + timedelta(seconds=1))
    assert info("a", (facts(), profile()), (later, profile()), order=order).status is AgentStatus.ONLINE


def test_a_busy_agent_is_a_candidate_only_beside_busy_ones() -> None:
    """Then the load decides."""
    busy, free = info("busy", (facts(running=2), profile(max_in_flight=2))), info("free", (facts(), profile()))
    assert busy.status is AgentStatus.BUSY
    assert refusal(busy, free) == {"busy": "it is busy, and another agent is not"}
    assert refusal(busy) == {}


def test_a_busy_agent_is_a_candidate_beside_free_ones_that_refuse() -> None:
    """Their circuit breakers are open. The candidates are remembered for each set of such agents."""
    found = [info("busy", (facts(running=2), profile(max_in_flight=2))), info("free", (facts(), profile()))]
    snapshot, address = Snapshot({each.name: each for each in found}, 0.0), CapabilityAddress.of("capability:sum")
    refusing = {"free": "its circuit breaker is open", "another": "the same"}
    candidates = snapshot.candidates(address, None, None, refusing)
    assert (candidates.names, candidates.refused) == (("busy",), {"free": "its circuit breaker is open"})
    assert snapshot.candidates(address, None, None, dict(refusing)) is candidates
    assert snapshot.candidates(address, None).names == ("free",)


def test_reasons_name_what_does_not_fit() -> None:
    """Version, tags, method and handler."""
    found = info("a", (facts(), profile(tags=["eu"])))
    assert refusal(found, address="capability:sum@>=3") == {"a": "it has 2, not >=3"}
    assert refusal(found, address="capability:sum?tags=eu,gpu") == {"a": "it lacks the tag gpu"}
    assert refusal(found, method="multiply") == {"a": "its method for it is not 'multiply'"}
    assert refusal(found, handler="query") == {"a": "it has no handler for QUERY"}
    assert refusal(info("b", (facts(), profile(capabilities=["sum"])))) == {"b": "it has no method for it"}
    assert refusal(info("b", (facts(), profile(capabilities=["sum"]))), handler="command") == {}


def test_an_unchanged_record_is_not_read_again_unless_time_changes_it() -> None:
    """A new heartbeat, another order, and a worker that has become silent change it."""
    before = record("a", (facts(), profile()))
    found = info_of(before, {profile().digest(): profile()})
    later = replace(before, read_at=NOW + timedelta(seconds=2))
    assert is_unchanged(later, before, found)
    assert not is_unchanged(replace(later, order={"weight": 0}), before, found)
    assert not is_unchanged(replace(later, alive_until={"a@0": NOW + timedelta(seconds=20)}), before, found)
    assert not is_unchanged(replace(before, read_at=NOW + timedelta(seconds=12)), before, found)
    assert not is_unchanged(later, None, found)


@pytest.mark.parametrize(
    ("summary", "checks", "health"),
    [
        (Summary(), [], Health.HEALTHY),
        (Summary(9, 9, 0.1, 0.1, 0.1), [], Health.HEALTHY),
        (Summary(10, 5, 0.1, 0.1, 0.1), [], Health.UNHEALTHY),
        (Summary(100, 10, 0.1, 0.1, 0.1), [], Health.DEGRADED),
        (Summary(100, 9, 0.1, 0.1, 0.1), [], Health.HEALTHY),
        (Summary(1, 0, 0.1, 3.0, 0.1), [], Health.DEGRADED),
        (Summary(1, 0, 0.1, 0.1, 31.0), [], Health.DEGRADED),
        (Summary(), [CheckResult("c", Health.UNKNOWN)], Health.UNKNOWN),
        (Summary(10, 5, 0.1, 0.1, 0.1), [CheckResult("c", Health.UNKNOWN)], Health.UNHEALTHY),
        (Summary(), [CheckResult("c", Health.HEALTHY), CheckResult("d", Health.UNHEALTHY, "x")], Health.UNHEALTHY),
        (Summary(), [CheckResult("c", Health.DEGRADED, "slow")], Health.DEGRADED),
    ],
)
def test_the_assessment_of_a_worker(summary: Summary, checks: list[CheckResult], health: Health) -> None:
    """The worst of checks, failures, durations and waiting times decides; few messages prove nothing."""
    found, reasons = assess(summary, checks, slow_seconds=2.0)
    assert found is health
    assert bool(reasons) is (health is not Health.HEALTHY)


def test_a_summary_has_the_outcomes_of_one_agent() -> None:
    """Its median, its 95th percentile, and the longest wait."""
    outcomes = Outcomes()
    for number in range(100):
        outcomes.note("a", number / 100, failed=number < 7, waited=number / 10)
    outcomes.note("b", 5.0, failed=True)
    assert outcomes.summary("a") == Summary(100, 7, 0.5, 0.95, 9.9)
    assert outcomes.summary("b").failed == 1
    assert outcomes.summary("c") == Summary()
