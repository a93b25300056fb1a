"""The checks of an agent's own: functions that say whether it can do its work."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from waooaw_celery.discovery.health.state import Health
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Seconds between two runs of a check, seconds that one may take, and failures in a row until it counts.
PERIOD, TIMEOUT, FAILURES = 10.0, 5.0, 2


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A check of an agent's own.

    Attributes:
        name: its name.
        function: a ``def`` or ``async def`` without parameters. It returns None or True: HEALTHY; a text:
            DEGRADED, for this reason; False: it fails. An exception fails it too.
        period: seconds between two runs.
        timeout: seconds after which a run has failed.
        failures: failures in a row from which the agent is UNHEALTHY. Before, it is DEGRADED.
    """

    name: str
    function: Callable[[], Any]
    period: float = PERIOD
    timeout: float = TIMEOUT
    failures: int = FAILURES

    def __post_init__(self) -> None:
        for name in ("period", "timeout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
                raise ConfigurationError(
                    f"{name} of the health check {self.name!r} must be a positive number of seconds, not {value!r}"
                )
        if type(self.failures) is not int or self.failures < 1:
            raise ConfigurationError(
                f"failures of the health check {self.name!r} must be a whole number from 1, not {self.failures!r}"
            )
        try:
            inspect.signature(self.function).bind()
        except TypeError as error:
            raise ConfigurationError(f"the health check {self.name!r} must take no arguments: {error}") from None
        except ValueError:  # a callable without a signature
            return


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The newest result of a check.

    Attributes:
        name: name of the check.
        health: what it says.
        reason: why it is not HEALTHY.
    """

    name: str
    health: Health
    reason: str = ""


class CheckRunner:
    """Runs the checks of one agent, each when it is due.

    A check that does not return is not started again before it has.

    Args:
        agent: name of the agent, for the log.
        checks: returns its checks.
    """

    def __init__(self, agent: str, checks: Callable[[], Iterable[HealthCheck]]) -> None:
        self._agent, self._checks = agent, checks
        self._due: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._running: dict[str, _Run] = {}
        self._results: dict[str, CheckResult] = {}

    def results(self) -> list[CheckResult]:
        """Return the newest result of each check; UNKNOWN for one that has not run yet."""
        return [
            self._results.get(check.name, CheckResult(check.name, Health.UNKNOWN, "has not run yet"))
            for check in self._checks()
        ]

    def run_due(self) -> None:
        """Start the checks that are due, and note the results of those that have ended or take too long."""
        for check in self._checks():
            run = self._running.get(check.name)
            if run is None and time.monotonic() >= self._due.get(check.name, 0.0):
                run = self._running[check.name] = _Run(check)
            if run is None:
                continue
            if run.ended.is_set():
                del self._running[check.name]
                self._due[check.name] = run.began + check.period
                if not run.is_late:
                    self._note(check, run.failure, run.degraded)
            elif not run.is_late and time.monotonic() - run.began > check.timeout:
                run.is_late = True
                self._note(check, f"it did not return within {check.timeout:g} s", None)

    def _note(self, check: HealthCheck, failure: str | None, degraded: str | None) -> None:
        if failure is None:
            self._failures[check.name] = 0
            health = Health.HEALTHY if degraded is None else Health.DEGRADED
            self._results[check.name] = CheckResult(check.name, health, degraded or "")
            return
        count = self._failures[check.name] = self._failures.get(check.name, 0) + 1
        health = Health.UNHEALTHY if count >= check.failures else Health.DEGRADED
        if count in (1, check.failures):
            logger.warning(
                "the health check %r of %s failed (%d of %d): %s",
                *(check.name, self._agent, count, check.failures, failure),
                extra={"action": "health_check_failed", "agent": self._agent},
            )
        self._results[check.name] = CheckResult(check.name, health, failure)


class _Run:
    """One run of a check, in a thread of its own: a check that blocks must delay no other."""

    def __init__(self, check: HealthCheck) -> None:
        self.began = time.monotonic()
        self.ended = threading.Event()
        self.is_late = False
        self.failure: str | None = None
        self.degraded: str | None = None
        self._check = check
        threading.Thread(target=self._run, name=f"waooaw-check-{check.name}", daemon=True).start()

    def _run(self) -> None:
        try:
            found = self._check.function()
            if inspect.isawaitable(found):
                found = asyncio.run(_awaited(found, self._check.timeout))
            if found is False:
                self.failure = "it returned False"
            elif isinstance(found, str) and found:
                self.degraded = found
            elif found not in (None, True, ""):
                self.failure = f"it returned {found!r:.80}: return None, True, False, or a text"
        except TimeoutError:
            self.failure = f"it took longer than {self._check.timeout:g} s"
        except Exception as error:  # noqa: BLE001 - whatever a check raises is its result
            self.failure = f"{type(error).__name__}: {error}"
        finally:
            self.ended.set()


async def _awaited(found: Any, timeout: float) -> Any:
    return await asyncio.wait_for(found, timeout)
