"""Helpers of the tests of the fleet's metrics: read what an exporter serves, and find or run Prometheus."""

from __future__ import annotations

import json
import os
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import Broker, lone_database, until

from waooaw_celery import AgentApp, Message, MessageBus
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.maintenance.fleet.exporter import Exporter
from waooaw_celery.maintenance.fleet.samples import Metric, Samples
from waooaw_celery.monitoring.metrics.definitions import METRICS
from waooaw_celery.testing.embedded import free_port, running, valkey
from waooaw_celery.worker.monitoring.worker_gauges import worker_gauges

#: Metrics of the workers that rules and dashboards may name: each with its labels.
WORKER_METRICS = {
    **{f"{metric.name}_total": metric.labels for metric in METRICS if not metric.buckets},
    **{metric.name: metric.labels for metric in METRICS if metric.buckets},
    **{gauge.name: gauge.labels for gauge in worker_gauges(None, lambda: True)},
}

Values = dict[str, dict[tuple[str, ...], float]]


def parsed(text: str) -> Values:
    """Return the values in the text of a scrape: by name, and by label values in the order of their names."""
    found: Values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), f"{sample.name} twice with {labels}"
            found[sample.name][labels] = sample.value
    return found


def of(samples: Samples, metric: Metric, *labels: str) -> float | None:
    """Return the value of a series that a reader has found, or None."""
    return samples.values.get(metric, {}).get(labels)


@contextmanager
def exporting(app: AgentApp, interval: float = 0.3, deadline: float = 10.0) -> Iterator[Exporter]:
    """Run an exporter during the block."""
    exporter = Exporter(app, interval, deadline)
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.stop()


def scraped(exporter: Exporter) -> Values:
    """Return what a scrape of an exporter gets."""
    return parsed(exporter.routes()["/metrics"]().body.decode())


def program(name: str) -> str:
    """Return the path of ``prometheus`` or ``promtool``, or skip the test."""
    variable = f"WAOOAW_TEST_{name.upper()}"
    found = os.environ.get(variable) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on PATH, and {variable} does not name it")
    return found


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> Any:
        """Return what the API answers."""
        url = f"{self._root}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own server
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of an instant query."""
        found: list[dict[str, Any]] = self.get("/api/v1/query", query=expression)["result"]
        return found

    def firing(self) -> dict[str, list[Mapping[str, Any]]]:
        """Return the alerts that fire, by name."""
        found: dict[str, list[Mapping[str, Any]]] = {}
        for alert in self.get("/api/v1/alerts")["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert)
        return found


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, int], rules: Path | None = None) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes twice a second.

    Args:
        folder: its folder.
        targets: the ports that it scrapes, by the names of their jobs.
        rules: the file with its rules.
    """
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [] if rules is None else [str(rules)],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
            for job, port in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = folder / "prometheus.log"
    with running(command, log=log, cwd=folder) as process:
        server = Prometheus(port)

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            with suppress(OSError):
                return bool(server.get("/api/v1/status/buildinfo"))
            return False

        until(answers, "Prometheus")
        yield server


@contextmanager
def alone(folder: Path, postgres_url: str | None = None) -> Iterator[Broker]:
    """Run a Valkey of its own during the block, and make a ledger of its own if a PostgreSQL is given."""
    with ExitStack() as stack:
        url = stack.enter_context(valkey())
        database = None if postgres_url is None else stack.enter_context(lone_database(postgres_url))
        broker = Broker(url, url, folder, database)
        if database is not None:
            with closing(broker.app()) as app:
                schema.upgrade(app.database)
        yield broker


def send(app: AgentApp, to: str, count: int = 1, **fields: object) -> list[str]:
    """Send messages to an agent, and return their ids."""
    message = {"from_agent": "tests", "to_agent": to} | fields
    return [MessageBus(app).send(Message(**message)).message_id for _ in range(count)]  # type: ignore[arg-type]


def record(app: AgentApp, **fields: object) -> Message:
    """Record a message in the ledger as the publisher does, without sending it."""
    message = Message(**({"from_agent": "tests", "to_agent": "writer"} | fields))  # type: ignore[arg-type]
    app.ledger.begin_recording([(message, "command")])()
    return message
