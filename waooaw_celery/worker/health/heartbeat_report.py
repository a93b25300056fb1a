"""The facts that a worker reports about itself with each heartbeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)


class HeartbeatReport:
    """The facts of one worker's heartbeat. Read them in ``AgentRecord.reports``.

    Example:
        A bootstep adds a fact in its ``create``::

            worker.heartbeat_report.add("clock", clock.report)
    """

    def __init__(self) -> None:
        self._facts: dict[str, Callable[[], Any]] = {}
        self._failed: set[str] = set()

    def add(self, name: str, fact: Callable[[], Any]) -> None:
        """Add a fact to each report.

        Args:
            name: its key in the report.
            fact: returns a JSON value, or None when there is nothing to report. It runs on the heartbeat's thread,
                and must return at once.
        """
        self._facts[name] = fact

    def collect(self) -> dict[str, Any]:
        """Return every fact that has a value. A fact that raises is logged once, and left out."""
        report = {}
        for name, fact in tuple(self._facts.items()):
            try:
                value = fact()
            except Exception:
                if name not in self._failed:
                    logger.exception(
                        "the heartbeat cannot report %r, and leaves it out",
                        name,
                        extra={"action": "report_failed"},
                    )
                self._failed.add(name)
                continue
            if value is not None:
                report[name] = value
        return report
