"""The health of a worker's agents: checked, assessed, and reported with each heartbeat."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from celery.worker import state

from waooaw_celery.discovery.health.assessment import assess
from waooaw_celery.discovery.health.checks import CheckRunner
from waooaw_celery.discovery.health.history import HealthHistory
from waooaw_celery.discovery.health.state import DISCOVERY_FACT, Health, WorkerFacts
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import JSON
from waooaw_celery.store.agents.record import PROFILE_FACT
from waooaw_celery.worker.health.periodic_step import PeriodicStep

logger = get_logger(__name__)

#: Seconds between two looks whether a check is due, and whether the health of an agent has changed.
LOOK_SECONDS = 0.5


class AgentHealth:
    """The health of the agents of a worker.

    Args:
        app: the application, an AgentApp.
        heartbeat_seconds: seconds between two heartbeats.
        ttl: seconds for which the worker counts as living after a heartbeat.
    """

    def __init__(self, app: Any, heartbeat_seconds: float, ttl: float) -> None:
        self._app, self._heartbeat, self._ttl = app, heartbeat_seconds, ttl
        self._histories: dict[str, HealthHistory] = {}
        self._runners: dict[str, CheckRunner] = {}
        self._profiles: dict[str, tuple[tuple[int, int], tuple[str, dict[str, JSON]]]] = {}
        self.drained: set[str] = set()

    def facts(self, agent: str, started_at: datetime) -> dict[str, Any]:
        """Return what the heartbeat reports about an agent.

        Args:
            agent: name of the agent.
            started_at: when the worker started.
        """
        summary = self._app.outcomes.summary(agent)
        history = self._history(agent)
        seconds = None
        if summary.median is not None and summary.p95 is not None:
            seconds = round(summary.median, 6), round(summary.p95, 6)
        facts = WorkerFacts(
            started_at=started_at,
            ttl=self._ttl,
            heartbeat=self._heartbeat,
            health=history.health,
            reasons=history.reasons,
            running=running_messages(agent),
            draining=agent in self.drained,
            handled=summary.handled,
            failed=summary.failed,
            seconds=seconds,
            waited=None if summary.waited is None else round(summary.waited, 3),
            history=history.changes,
        )
        return {DISCOVERY_FACT: facts.to_dict(), PROFILE_FACT: self.profile(agent)[0]}

    def profile(self, agent: str) -> tuple[str, dict[str, JSON]]:
        """Return what the code declares about an agent: a digest, and the JSON object."""
        declaration = self._app.declarations[agent]
        size = len(self._app.agents[agent]), len(self._app.subscribed)  # handlers are only ever added
        known = self._profiles.get(agent)
        if known is None or known[0] != size:
            patterns = {p for each in self._app.subscribed if each.agent == agent for p in each.patterns}
            profile = declaration.profile(patterns)
            known = self._profiles[agent] = size, (profile.digest(), profile.to_dict())
        return known[1]

    def capabilities(self, agent: str) -> set[str]:
        """Return the names of what an agent can do, by which a broadcast selects it."""
        _, profile = self.profile(agent)
        return {each["name"] for each in profile["capabilities"]}

    def look(self, agent: str) -> bool:
        """Run the checks that are due, assess the health of an agent, and return whether it has changed."""
        runner = self._runners.get(agent)
        declaration = self._app.declarations[agent]
        if runner is None:
            runner = self._runners[agent] = CheckRunner(agent, lambda: tuple(declaration.checks.values()))
        runner.run_due()
        health, reasons = assess(self._app.outcomes.summary(agent), runner.results(), declaration.slow_seconds)
        history = self._history(agent)
        before = history.health
        changed = history.note(health, reasons, self._app.reference_clock.now())
        if changed and before is not Health.UNKNOWN:
            logger.warning(
                "the agent %s is %s now (%s before)%s",
                *(agent, health, before, f": {'; '.join(reasons)}" if reasons else ""),
                extra={"action": "health_changed", "agent": agent},
            )
        return changed

    def _history(self, agent: str) -> HealthHistory:
        return self._histories.setdefault(agent, HealthHistory())


def running_messages(agent: str) -> int:
    """Return how many messages of an agent are handled now, or wait in the pool."""
    return sum(getattr(request.task, "agent", None) == agent for request in tuple(state.active_requests))


def held_messages(agents: set[str]) -> int:
    """Return how many messages of agents this worker holds: those that are handled, wait or are not due yet."""
    return sum(getattr(request.task, "agent", None) in agents for request in tuple(state.requests.values()))


class WatchHealth(PeriodicStep):
    """Bootstep of the worker: a thread of its main process that watches the health of its agents."""

    seconds, thread_name = LOOK_SECONDS, "waooaw-health"

    def look(self, parent: Any) -> None:
        """Assess each agent; a check of one that fails does not keep the others from theirs."""
        health: AgentHealth = parent.heartbeat.agent_health
        for agent in parent.app.consumed_agents():
            try:
                if health.look(agent):
                    parent.heartbeat.hurry(announce=agent)
            except Exception:
                logger.exception(
                    "the health of %s cannot be assessed; this is repeated",
                    agent,
                    extra={"action": "health_failed"},
                )
