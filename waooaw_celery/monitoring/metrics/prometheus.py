"""Metrics in Prometheus' text format, by its own library: ``pip install 'waooaw-celery[prometheus]'``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.monitoring.http_server import Reply
from waooaw_celery.monitoring.metrics.definitions import METRICS, Metric
from waooaw_celery.monitoring.metrics.process_metrics import ProcessMetrics, start_metrics

logger = get_logger(__name__)


class Gauge(NamedTuple):
    """A value that is read at each scrape.

    Attributes:
        name: its name.
        help: what it says.
        labels: the names of its labels.
        read: returns its value by the values of the labels. It must return at once.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    read: Callable[[], Mapping[tuple[str, ...], float]]


class MetricsCollector:
    """A collector of prometheus-client for the metrics of this process.

    Args:
        metrics: the counters and histograms.
        gauges: further values.
    """

    def __init__(self, metrics: ProcessMetrics, gauges: Iterable[Gauge] = ()) -> None:
        self._metrics, self._gauges = metrics, tuple(gauges)

    def collect(self) -> Iterable[Any]:
        """Return the families of all metrics. A gauge that cannot be read is logged and left out."""
        core = _library().metrics_core
        for metric in METRICS:
            yield _family(core, metric, self._metrics.read(metric))
        for gauge in self._gauges:
            family = core.GaugeMetricFamily(gauge.name, gauge.help, labels=gauge.labels)
            try:
                values = gauge.read()
            except Exception:
                logger.exception("metric %s cannot be read", gauge.name, extra={"action": "metric_failed"})
                continue
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family


def register_metrics(registry: Any) -> MetricsCollector:
    """Measure the sends of this process, and add them to a registry of prometheus-client. Call it once.

    Args:
        registry: a ``prometheus_client.CollectorRegistry``, such as ``prometheus_client.REGISTRY``.

    Returns:
        The collector, which ``registry.unregister`` takes out again.

    Raises:
        ConfigurationError: prometheus-client is not installed.

    Example:
        >>> register_metrics(prometheus_client.REGISTRY)
    """
    _library()
    collector = MetricsCollector(start_metrics())
    registry.register(collector)
    return collector


def text_of(metrics: ProcessMetrics, gauges: Iterable[Gauge] = ()) -> Callable[[], Reply]:
    """Return what answers ``/metrics``.

    Args:
        metrics: the counters and histograms.
        gauges: further values.

    Raises:
        ConfigurationError: prometheus-client is not installed.
    """
    library = _library()
    registry = library.CollectorRegistry()
    registry.register(MetricsCollector(metrics, gauges))
    library.ProcessCollector(registry=registry)
    library.PlatformCollector(registry=registry)
    return lambda: Reply(200, library.generate_latest(registry), library.CONTENT_TYPE_LATEST)


def has_library() -> bool:
    """Return whether prometheus-client is installed."""
    try:
        _library()
    except ConfigurationError:
        return False
    return True


def _family(core: Any, metric: Metric, series: Mapping[tuple[str, ...], list[float]]) -> Any:
    if not metric.buckets:
        counter = core.CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, values in series.items():
            counter.add_metric(labels, values[0])
        return counter
    histogram = core.HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    bounds = [*map(str, metric.buckets), "+Inf"]
    for labels, (_, total, *counts) in series.items():
        histogram.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
    return histogram


def _library() -> Any:
    try:
        import prometheus_client
        import prometheus_client.metrics_core
    except ImportError as error:
        raise ConfigurationError(
            "metrics need prometheus-client: pip install 'waooaw-celery[prometheus]'"
        ) from error
    return prometheus_client
