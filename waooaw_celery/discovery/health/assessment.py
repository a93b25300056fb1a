"""What a worker concludes about the health of an agent."""

from __future__ import annotations

from collections.abc import Iterable

from waooaw_celery.discovery.health.checks import CheckResult
from waooaw_celery.discovery.health.outcomes import Summary
from waooaw_celery.discovery.health.state import Health

#: Messages of the last minute from which the share of failures counts.
MIN_MESSAGES = 10
#: The shares of failures from which an agent is DEGRADED and UNHEALTHY.
DEGRADED_SHARE, UNHEALTHY_SHARE = 0.1, 0.5
#: Seconds that a message has waited from which an agent is DEGRADED.
LATE_SECONDS = 30.0


def assess(
    summary: Summary, checks: Iterable[CheckResult], slow_seconds: float | None = None
) -> tuple[Health, tuple[str, ...]]:
    """Return the health of an agent in a worker, and why it is not HEALTHY.

    Args:
        summary: the outcomes of the last minute.
        checks: the newest results of the agent's own checks.
        slow_seconds: duration of its messages, at the 95th percentile, from which it is DEGRADED; None: none.
    """
    found: list[tuple[Health, str]] = [
        (check.health, f"check {check.name}: {check.reason}")
        for check in checks
        if check.health is not Health.HEALTHY
    ]
    if summary.handled >= MIN_MESSAGES:
        share = summary.failed / summary.handled
        told = f"{summary.failed} of {summary.handled} messages of the last minute failed"
        if share >= UNHEALTHY_SHARE:
            found.append((Health.UNHEALTHY, told))
        elif share >= DEGRADED_SHARE:
            found.append((Health.DEGRADED, told))
    if slow_seconds is not None and summary.p95 is not None and summary.p95 > slow_seconds:
        found.append((Health.DEGRADED, f"a message takes {summary.p95:.3g} s, more than {slow_seconds:g} s"))
    if summary.waited is not None and summary.waited > LATE_SECONDS:
        found.append((Health.DEGRADED, f"a message waited {summary.waited:.0f} s"))
    for health in (Health.UNHEALTHY, Health.UNKNOWN, Health.DEGRADED):
        if reasons := tuple(reason for state, reason in found if state is health):
            others = tuple(reason for state, reason in found if state is not health)
            return health, (*reasons, *others)
    return Health.HEALTHY, ()
