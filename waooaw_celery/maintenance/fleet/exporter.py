"""The exporter: reads all sources in the background, and answers scrapes with what was read last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.maintenance.fleet import metrics
from waooaw_celery.maintenance.fleet.agents import AgentReader
from waooaw_celery.maintenance.fleet.dead_letters import DeadLetterReader
from waooaw_celery.maintenance.fleet.known_agents import KnownAgents
from waooaw_celery.maintenance.fleet.queues import QueueReader
from waooaw_celery.maintenance.fleet.samples import Metric
from waooaw_celery.maintenance.fleet.sources import DEADLINE_SECONDS, Source, SourceState
from waooaw_celery.monitoring.http_server import Reply


class Exporter:
    """Exports the metrics of the fleet of one application.

    Args:
        app: the application whose broker, store and ledger are read.
        interval: seconds between two readings of a source.
        deadline: seconds that one reading may take.

    Raises:
        ConfigurationError: prometheus-client is not installed.

    Example:
        >>> exporter = Exporter(app, interval=15)
        >>> exporter.start()
        >>> server = MonitoringServer(exporter.routes(), port=9808)
        >>> server.start()
    """

    def __init__(self, app: AgentApp, interval: float, deadline: float = DEADLINE_SECONDS) -> None:
        self._page = _page(self)
        agents = KnownAgents(app.settings.agents)
        self._agents = AgentReader(app, agents)
        readers: dict[str, Callable[[], Any]] = {
            "store": self._agents.read,
            "broker": QueueReader(app, agents).read,
            "dead_letters": DeadLetterReader(app).read,
        }
        if app.components.has_ledger:  # a process without a ledger does not load SQLAlchemy
            from waooaw_celery.maintenance.fleet.ledger import LedgerReader
            from waooaw_celery.maintenance.fleet.messages import MessageReader
            from waooaw_celery.maintenance.fleet.workflows import WorkflowReader

            readers["messages"] = MessageReader(app).read
            readers["ledger"] = LedgerReader(app).read
            readers["workflows"] = WorkflowReader(app).read
        self._sources = [Source(name, read, interval, deadline) for name, read in readers.items()]

    def start(self) -> None:
        """Begin to read the sources."""
        for source in self._sources:
            source.start()

    def stop(self) -> None:
        """Stop to read, and close the connections of this exporter."""
        for source in self._sources:
            source.stop()
        self._agents.close()

    def states(self) -> dict[str, SourceState]:
        """Return how each source is, by name; this never waits."""
        return {source.name: source.state() for source in self._sources}

    def families(self) -> Iterator[tuple[Metric, dict[tuple[str, ...], float]]]:
        """Yield each metric that has values, with its values by label values."""
        states = self.states()
        merged: dict[Metric, dict[tuple[str, ...], float]] = {}
        for name, state in states.items():
            for metric, values in state.samples.values.items():
                merged.setdefault(metric, {}).update(values)
            merged.setdefault(metrics.SOURCE_UP, {})[(name,)] = float(state.up)
            if state.age is not None:
                merged.setdefault(metrics.SOURCE_AGE, {})[(name,)] = state.age
            if state.seconds is not None:
                merged.setdefault(metrics.SOURCE_READ, {})[(name,)] = state.seconds
        yield from merged.items()

    def routes(self) -> dict[str, Callable[[], Reply]]:
        """Return the answers of the exporter, by path."""
        return {"/metrics": self._page, "/health/live": self._live, "/health/ready": self._ready}

    def _live(self) -> Reply:
        """Answer 503 if a thread has ended: then only a new process reads that source again."""
        dead = [source.name for source in self._sources if not source.alive]
        return Reply(503, f"not read any more: {', '.join(dead)}\n".encode()) if dead else Reply(200, b"live\n")

    def _ready(self) -> Reply:
        """Answer 200 once every source was tried. One that is down is a metric: it must still be scraped."""
        states = self.states()
        lines = [f"{name}: {'up' if state.up else 'down'}\n" for name, state in states.items()]
        waiting = [name for name, state in states.items() if not state.tried]
        if waiting:
            return Reply(503, f"not read yet: {', '.join(waiting)}\n".encode())
        return Reply(200, "".join(lines).encode())


def _page(exporter: Exporter) -> Callable[[], Reply]:
    """Return the function that answers a scrape. Its registry has no metric of the process or of other code.

    Raises:
        ConfigurationError: prometheus-client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.core import GaugeMetricFamily
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
        from prometheus_client.registry import Collector
    except ImportError as error:
        raise ConfigurationError(
            "the exporter needs prometheus-client: pip install 'waooaw-celery[prometheus]'"
        ) from error

    class FleetCollector(Collector):
        def collect(self) -> Iterator[Any]:
            for metric, values in exporter.families():
                family = GaugeMetricFamily(metric.name, metric.text, labels=metric.labels)
                for labels, value in values.items():
                    family.add_metric(labels, value)
                yield family

    registry = CollectorRegistry(auto_describe=False)
    registry.register(FleetCollector())
    return lambda: Reply(200, generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4)
