"""What a worker reports about itself with each heartbeat: facts that other parts of the worker add by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


class HeartbeatReport:
    """The facts of one worker's heartbeat.

    A bootstep adds a fact in its ``create``: ``worker.heartbeat_report.add("clock", clock.report)``.
    ``AgentRecord.reports`` gives it back.
    """

    def __init__(self) -> None:
        self._facts: dict[str, Callable[[], Any]] = {}
        self._failed: set[str] = set()

    def add(self, name: str, fact: Callable[[], Any]) -> None:
        """Report what a function returns under a name.

        Args:
            name: key in the report.
            fact: returns a JSON value, or None when there is nothing to report. It runs on the heartbeat's thread
                and must return at once.
        """
        self._facts[name] = fact

    def collect(self) -> dict[str, Any]:
        """Return every fact that has a value."""
        report = {}
        for name, fact in tuple(self._facts.items()):
            try:
                value = fact()
            except Exception:  # the heartbeat goes on without this fact
                if name not in self._failed:
                    logger.exception("the heartbeat cannot report %r", name, extra={"action": "report_failed"})
                self._failed.add(name)
                continue
            if value is not None:
                report[name] = value
        return report
