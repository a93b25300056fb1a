"""The counters and histograms of a process. A pool's process sends what it counts to the worker's main process.

A child of the prefork pool writes its counts to a pipe after each handler, in one write of less than ``PIPE_BUF``
bytes, which POSIX keeps in one piece (https://pubs.opengroup.org/onlinepubs/9799919799/functions/write.html). So
``/metrics`` of the main process is complete, also when children are recycled, and no file is left behind.
"""

from __future__ import annotations

import json
import os
import threading
from bisect import bisect_left
from collections.abc import Iterator
from select import PIPE_BUF

from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.monitoring.metrics.definitions import METRICS, Metric

logger = get_logger(__name__)

#: The most combinations of label values of one metric. Others are counted with ``other`` as their first label.
MAX_SERIES = 2000
#: Bytes that are read from the pipe at once.
_READ = 1 << 16
_BY_NAME = {metric.name: metric for metric in METRICS}
#: The value of a label whose own value is beyond the limit.
OTHER = "other"


class ProcessMetrics:
    """Counts what the process does. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: For each metric, its values by labels: the count, the sum, and the count of each bucket.
        self._values: dict[str, dict[tuple[str, ...], list[float]]] = {metric.name: {} for metric in METRICS}
        self._pipe: _Pipe | None = None

    def count(self, metric: Metric, *labels: str, number: float = 1) -> None:
        """Add to a counter.

        Args:
            metric: the counter.
            labels: the values of its labels, in their order.
            number: how much.
        """
        with self._lock:
            self._of(metric, labels)[0] += number

    def observe(self, metric: Metric, *labels: str, seconds: float) -> None:
        """Add a value to a histogram.

        Args:
            metric: the histogram.
            labels: the values of its labels, in their order.
            seconds: the value.
        """
        place = bisect_left(metric.buckets, seconds)
        with self._lock:
            values = self._of(metric, labels)
            values[0] += 1
            values[1] += seconds
            values[2 + place] += 1

    def read(self, metric: Metric) -> dict[tuple[str, ...], list[float]]:
        """Return the values of a metric by labels: count, sum, and the count of each bucket (not cumulated)."""
        with self._lock:
            return {labels: list(values) for labels, values in self._values[metric.name].items()}

    def _of(self, metric: Metric, labels: tuple[str, ...]) -> list[float]:
        series = self._values[metric.name]
        values = series.get(labels)
        if values is None:
            if len(series) >= MAX_SERIES:
                labels = (OTHER, *labels[1:]) if (OTHER, *labels[1:]) in series else (OTHER,) * len(labels)
            size = 3 + len(metric.buckets) if metric.buckets else 1
            values = series.setdefault(labels, [0.0] * size)
        return values

    # --- from the processes of a pool to the worker's main process

    def open_pipe(self) -> None:
        """Have processes that are forked from now on send what they count to this one."""
        if self._pipe is None:
            self._pipe = _Pipe()
            threading.Thread(target=self._receive, args=(self._pipe,), name="waooaw-metrics", daemon=True).start()

    def send(self) -> None:
        """Send what this process has counted to the worker's main process, if it is one of a pool.

        What the pipe has no room for is kept, and sent the next time.
        """
        pipe = self._pipe
        if pipe is None or not pipe.is_child():
            return
        with self._lock:
            for name, series in self._values.items():
                for labels in [labels for labels, values in series.items() if any(values)]:
                    if pipe.write(json.dumps([name, labels, series[labels]]).encode() + b"\n"):
                        del series[labels]

    def _receive(self, pipe: _Pipe) -> None:
        for line in pipe.lines():
            try:
                name, labels, sent = json.loads(line)
                metric = _BY_NAME[name]
                with self._lock:
                    values = self._of(metric, tuple(labels))
                    for place, number in enumerate(sent):
                        values[place] += number
            except (ValueError, KeyError, IndexError, TypeError):
                logger.exception(
                    "the counts of a process could not be read", extra={"action": "counts_unreadable"}
                )

    def forget(self) -> None:
        """Forget what the parent of this process has counted. Call it in a forked process."""
        self._lock = threading.Lock()
        for series in self._values.values():
            series.clear()


class _Pipe:
    """A pipe from forked processes to the one that made it."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._owner = os.getpid()

    def is_child(self) -> bool:
        """Return whether this process was forked from the one that reads."""
        return os.getpid() != self._owner

    def write(self, line: bytes) -> bool:
        """Write a line in one piece, and return whether there was room for it."""
        if len(line) > PIPE_BUF:  # it would not stay in one piece
            logger.error("counts of %d bytes are too long to be sent", len(line))
            return True
        try:
            return os.write(self._writer, line) == len(line)
        except BlockingIOError:
            return False

    def lines(self) -> Iterator[bytes]:
        """Return each line, as soon as it has arrived. It never ends: this process has the other end open too."""
        rest = b""
        while True:
            *lines, rest = (rest + os.read(self._reader, _READ)).split(b"\n")
            yield from lines


_metrics: ProcessMetrics | None = None


def process_metrics() -> ProcessMetrics | None:
    """Return the metrics of this process. None: it does not measure."""
    return _metrics


def start_metrics() -> ProcessMetrics:
    """Begin to measure in this process, and return its metrics; a second call changes nothing."""
    global _metrics
    if _metrics is None:
        _metrics = ProcessMetrics()
    return _metrics


def _after_fork() -> None:
    if _metrics is not None:
        _metrics.forget()


os.register_at_fork(after_in_child=_after_fork)
