"""Requests an answer again and again, whenever it is told to.

``python -m benchmarks.requester URL AGENT``: each line of standard input has seconds; it requests for so long, and
answers with a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time

from waooaw_celery import RequestResponseHandler, create_app


def main(url: str, agent: str) -> None:
    """Request whenever a line comes."""
    app = create_app(broker_url=url, result_backend=url, waooaw_sender="bench", waooaw_agents=[agent])
    requests = RequestResponseHandler(app)
    for line in sys.stdin:
        sent, began, processor = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - began < float(line):
            requests.request(agent, "echo", {"value": sent}, timeout=60)
            sent += 1
        took, used = time.perf_counter() - began, time.process_time() - processor
        print(json.dumps({"sent": sent, "seconds": took, "processor": used}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
