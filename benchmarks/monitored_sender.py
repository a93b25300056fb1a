"""Sends messages one by one, with metrics (BENCH_METRICS) and traces (BENCH_TRACES), and prints its rate as JSON.

``python -m benchmarks.monitored_sender URL AGENT SECONDS``
"""

from __future__ import annotations

import json
import os
import sys
import time

from benchmarks import tracing
from benchmarks.payload import PAYLOAD
from waooaw_celery import Message, MessageBus, create_app
from waooaw_celery.monitoring.metrics.process_metrics import start_metrics

#: Messages that are sent before the measurement begins.
WARM_UP = 50


def main(url: str, agent: str, seconds: float) -> None:
    """Send, and print messages per second and microseconds of processor time for each."""
    tracing.set_up()
    if os.environ.get("BENCH_METRICS"):
        start_metrics()
    bus = MessageBus(create_app(broker_url=url, result_backend=url, waooaw_sender="bench", waooaw_agents=[agent]))

    def send() -> None:
        bus.send(Message(from_agent="bench", to_agent=agent, payload=PAYLOAD))

    for _ in range(WARM_UP):
        send()
    sent, began, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        send()
        sent += 1
    cpu = (time.process_time() - processor) / sent * 1e6
    print(json.dumps({"rate": sent / (time.perf_counter() - began), "cpu": cpu}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
