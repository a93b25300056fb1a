"""The counters and histograms of a process, and how those of a pool's processes come to the main process."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support import until

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.monitoring.http_server import MonitoringServer, Reply, health_reply
from waooaw_celery.monitoring.metrics import process_metrics
from waooaw_celery.monitoring.metrics.definitions import METRICS, OUTCOMES, PROCESS_SECONDS, SENT
from waooaw_celery.monitoring.metrics.process_metrics import MAX_SERIES, OTHER, ProcessMetrics
from waooaw_celery.monitoring.metrics.prometheus import Gauge, MetricsCollector, text_of


def values(metrics: ProcessMetrics, *gauges: Gauge) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return the values as Prometheus reads them, by name and labels."""
    registry = CollectorRegistry()
    registry.register(MetricsCollector(metrics, gauges))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_counters_add_up() -> None:
    """Each combination of labels by itself."""
    metrics = ProcessMetrics()
    metrics.count(OUTCOMES, "a", "handled")
    metrics.count(OUTCOMES, "a", "handled", number=2)
    metrics.count(OUTCOMES, "b", "failed")
    found = values(metrics)
    assert found[("waooaw_outcomes_total", (("agent", "a"), ("status", "handled")))] == 3
    assert found[("waooaw_outcomes_total", (("agent", "b"), ("status", "failed")))] == 1


def test_the_buckets_of_a_histogram_are_cumulated() -> None:
    """A value on a bound belongs to the bucket of that bound."""
    metrics = ProcessMetrics()
    for seconds in (0.001, 0.005, 0.3, 1000.0):
        metrics.observe(PROCESS_SECONDS, "a", "command", "", seconds=seconds)
    found = values(metrics)

    def bucket(bound: str) -> float:
        labels = (("agent", "a"), ("error_type", ""), ("handler", "command"), ("le", bound))
        return found[("messaging_process_duration_seconds_bucket", labels)]

    assert [bucket(bound) for bound in ("0.005", "0.25", "0.5", "300.0", "+Inf")] == [2, 2, 3, 3, 4]
    labels = (("agent", "a"), ("error_type", ""), ("handler", "command"))
    assert found[("messaging_process_duration_seconds_count", labels)] == 4
    assert found[("messaging_process_duration_seconds_sum", labels)] == pytest.approx(1000.306)


def test_the_number_of_series_is_bounded() -> None:
    """What is beyond the limit is counted together."""
    metrics = ProcessMetrics()
    for number in range(MAX_SERIES + 50):
        metrics.count(OUTCOMES, f"agent-{number}", "handled")
    series = metrics.read(OUTCOMES)
    assert len(series) == MAX_SERIES + 1
    assert series[(OTHER, OTHER)] == [50]


def test_a_gauge_that_cannot_be_read_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged."""
    broken = Gauge("waooaw_broken", "Raises.", (), lambda: {(): 1 / 0})
    whole = Gauge("waooaw_whole", "Is there.", ("agent",), lambda: {("a",): 7.0})
    found = values(ProcessMetrics(), broken, whole)
    assert found == {("waooaw_whole", (("agent", "a"),)): 7}
    assert "waooaw_broken cannot be read" in caplog.text


@pytest.fixture
def child_of() -> Iterator[list[int]]:
    """The ids of forked processes, which are waited for."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        os.waitpid(pid, 0)


def test_forked_processes_send_what_they_count(child_of: list[int]) -> None:
    """Only what they have counted themselves, also when they end at once."""
    metrics = ProcessMetrics()
    metrics.open_pipe()
    metrics.count(SENT, "a", "send", "", number=5)
    metrics.send()  # the main process keeps what it has
    for number in range(1, 4):
        pid = os.fork()
        if pid == 0:
            metrics.forget()
            metrics.count(SENT, "a", "send", "", number=number)
            metrics.observe(PROCESS_SECONDS, "a", "command", "", seconds=0.1)
            metrics.send()
            metrics.send()  # nothing is left
            os._exit(0)
        child_of.append(pid)
    until(lambda: metrics.read(SENT)[("a", "send", "")] == [5 + 1 + 2 + 3], "the counts of all processes")
    until(lambda: metrics.read(PROCESS_SECONDS)[("a", "command", "")][0] == 3, "their histograms")


def test_a_full_pipe_loses_no_count(child_of: list[int]) -> None:
    """What has no room is kept and sent the next time."""
    metrics = ProcessMetrics()
    metrics._pipe = pipe = process_metrics._Pipe()  # nobody reads yet
    pid = os.fork()
    if pid == 0:
        metrics.forget()
        while pipe.write(b"x" * 4000 + b"\n"):
            pass
        while pipe.write(b"x\n"):
            pass
        metrics.count(SENT, "a", "send", "")
        metrics.send()
        os._exit(0 if metrics.read(SENT) == {("a", "send", ""): [1]} else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_process_without_metrics_has_none() -> None:
    """Nothing is counted until somebody asks for it."""
    assert process_metrics.process_metrics() is None


def test_every_metric_has_few_labels() -> None:
    """No label is an id, a name of a person or a payload."""
    known = {"agent", "operation", "error_type", "handler", "status", "priority"}
    assert {label for metric in METRICS for label in metric.labels} <= known


def test_the_server_answers_each_path_and_survives_errors(caplog: pytest.LogCaptureFixture) -> None:
    """One that raises is answered with 500; HEAD has no body."""
    routes = {
        "/ok": lambda: Reply(200, b"yes"),
        "/metrics": text_of(ProcessMetrics()),
        "/bad": lambda: Reply(200, str(1 / 0).encode()),
        "/health": lambda: health_reply({"broker": "away"}),
    }
    server = MonitoringServer(routes, 0, "127.0.0.1")
    server.start()
    with closing(_Stopping(server)):
        assert _get(server, "/ok?x=1") == (200, "yes")
        assert _get(server, "/ok", "HEAD") == (200, "")
        assert _get(server, "/bad")[0] == 500
        assert "the answer to GET /bad could not be made" in caplog.text
        assert _get(server, "/health") == (503, '{"status": "fail", "problems": {"broker": "away"}}\n')
        assert "process_cpu_seconds_total" in _get(server, "/metrics")[1]
        with pytest.raises(ConfigurationError, match=f"port {server.port} of 127.0.0.1 cannot be used"):
            MonitoringServer(routes, server.port, "127.0.0.1")


def test_a_forked_process_does_not_hold_the_port() -> None:
    """One that outlives the worker would keep the port from the next one."""
    server = MonitoringServer({}, 0, "127.0.0.1")
    reader, writer = os.pipe()
    started, forked = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.write(forked, b"x")
        os.read(reader, 1)  # until the test ends
        os._exit(0)
    try:
        assert os.read(started, 1) == b"x"  # before, the new process may not have closed the port yet
        server.stop()
        MonitoringServer({}, server.port, "127.0.0.1").stop()
    finally:
        os.close(writer)
        os.waitpid(pid, 0)
        for end in (reader, started, forked):
            os.close(end)


class _Stopping:
    def __init__(self, server: MonitoringServer) -> None:
        self.close = server.stop


def _get(server: MonitoringServer, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - always http
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
