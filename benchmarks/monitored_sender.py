"""Sends messages one by one, with metrics (BENCH_METRICS) and traces (BENCH_TRACES), whenever it is told to.

``python -m benchmarks.monitored_sender URL AGENT``: each line of standard input has seconds; it sends for so
long, and answers with a line of JSON.
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


def main(url: str, agent: str) -> None:
    """Send whenever a line comes."""
    tracing.set_up()
    if os.environ.get("BENCH_METRICS"):
        start_metrics()
    bus = MessageBus(create_app(broker_url=url, result_backend=url, waooaw_sender="bench", waooaw_agents=[agent]))
    for line in sys.stdin:
        sent, began, processor = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - began < float(line):
            bus.send(Message(from_agent="bench", to_agent=agent, payload=PAYLOAD))
            sent += 1
        took, used = time.perf_counter() - began, time.process_time() - processor
        print(json.dumps({"sent": sent, "seconds": took, "processor": used}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
