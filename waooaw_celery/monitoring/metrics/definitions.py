"""What a process measures: each metric with its labels and its buckets.

The names are those of OpenTelemetry's semantic conventions for messaging
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-metrics/), written as Prometheus writes them. What
has no convention begins with ``waooaw_``. Every label has few values: agents, handlers, statuses, priorities,
classes of errors. No id and no payload is a label.
"""

from __future__ import annotations

from typing import NamedTuple

#: Upper bounds of the buckets of durations, in seconds.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metric(NamedTuple):
    """A counter or a histogram.

    Attributes:
        name: its name, without the suffix ``_total`` of a counter.
        help: what it says.
        labels: the names of its labels.
        buckets: the upper bounds of a histogram; empty: it is a counter.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


SENT = Metric(
    "messaging_client_sent_messages",
    "Messages that this process has sent, or could not send: then error_type is the class of the error.",
    ("agent", "operation", "error_type"),
)
SEND_SECONDS = Metric(
    "messaging_client_operation_duration_seconds",
    "Seconds that sending took, also of several messages at once. An empty agent: messages to several agents.",
    ("agent", "operation", "error_type"),
    SECONDS,
)
CONSUMED = Metric(
    "messaging_client_consumed_messages", "Messages that this worker has begun to handle.", ("agent",)
)
PROCESS_SECONDS = Metric(
    "messaging_process_duration_seconds",
    "Seconds that handling a message took. error_type is the class of the error of a message that failed.",
    ("agent", "handler", "error_type"),
    SECONDS,
)
OUTCOMES = Metric(
    "waooaw_outcomes",
    "How attempts at messages ended in this worker: handled, failed, retried, expired, cancelled.",
    ("agent", "status"),
)
QUEUE_WAIT = Metric(
    "waooaw_queue_wait_seconds",
    "Seconds for which messages waited in their queue until their handler started. Without retries and delays.",
    ("agent", "priority"),
    SECONDS,
)
#: All of them, in the order in which they are shown.
METRICS = (SENT, SEND_SECONDS, CONSUMED, PROCESS_SECONDS, OUTCOMES, QUEUE_WAIT)
