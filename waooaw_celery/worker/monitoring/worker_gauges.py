"""The values that a worker shows beside its counters: what it holds, its clock, its spool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from waooaw_celery.monitoring.metrics.prometheus import Gauge

Values = Mapping[tuple[str, ...], float]


def worker_gauges(worker: Any, is_ready: Callable[[], bool]) -> list[Gauge]:
    """Return the gauges of a worker.

    Args:
        worker: Celery's worker, with its heartbeat's report.
        is_ready: returns whether it is ready to handle messages.
    """

    def progress(key: str) -> Callable[[], Values]:
        return lambda: _value((worker.heartbeat_report.collect().get("progress") or {}).get(key))

    def running() -> Values:
        agents = {**dict.fromkeys(worker.app.consumed_agents(), 0), **worker.watchdog.running_by_agent()}
        return {(agent,): float(number) for agent, number in agents.items()}

    def clock() -> Values:
        return _value((worker.heartbeat_report.collect().get("clock") or {}).get("ahead"))

    return [
        Gauge(
            "waooaw_worker_ready",
            "Whether this worker is ready to handle messages: 1, or 0.",
            (),
            lambda: {(): float(is_ready())},
        ),
        Gauge("waooaw_worker_running", "Handlers that run in this worker now, by agent.", ("agent",), running),
        Gauge("waooaw_worker_slots", "Handlers that this worker can run at once.", (), progress("slots")),
        Gauge(
            "waooaw_worker_held", "Messages that this worker has and has not acknowledged.", (), progress("held")
        ),
        Gauge(
            "waooaw_worker_running_seconds",
            "Seconds for which the longest handler runs; missing: none runs.",
            (),
            progress("running_seconds"),
        ),
        Gauge("waooaw_worker_clock_ahead_seconds", "Seconds by which this worker's clock is ahead.", (), clock),
        Gauge(
            "waooaw_ledger_spool_rows",
            "Rows of the ledger that wait in this computer's spool file until the database answers.",
            (),
            lambda: _value(spool_rows(worker.app)),
        ),
        Gauge(
            "waooaw_ledger_outage_seconds",
            "Seconds for which the ledger's database has not answered this process; 0: it answers.",
            (),
            lambda: _value(outage_seconds(worker.app)),
        ),
    ]


def spool_rows(app: Any) -> int | None:
    """Return how many rows wait in the spool of this process; None: it has no ledger, or has not used it yet."""
    ledger = vars(app.components).get("ledger")
    return None if ledger is None else int(ledger.spool.counts()[0])


def outage_seconds(app: Any) -> float | None:
    """Return for how long the ledger's database has not answered this process; None: it has no ledger yet."""
    ledger = vars(app.components).get("ledger")
    return None if ledger is None else float(ledger.outage_seconds())


def _value(number: float | None) -> Values:
    return {} if number is None else {(): float(number)}
