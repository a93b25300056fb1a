"""A Celery application with none of this package's code: a worker of an agent's queue, and a publisher to one.

STOCK_AGENT is the agent's name. With ``work`` it is a worker; the ``celery`` command would import this package for
its own commands. With a value as JSON it publishes requests to that agent in all ways that Kombu has, and prints
what came back, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from celery import Celery
from kombu import Queue
from kombu.utils import json as kombu_json
from redis import Redis

NAME = os.environ["STOCK_AGENT"]
app = Celery("stock", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
app.conf.update(
    accept_content=["json", "msgpack"],
    task_queues=[Queue(f"agent.{NAME}", routing_key=f"agent.{NAME}", max_priority=9)],
    task_default_queue=f"agent.{NAME}",
    broker_connection_retry_on_startup=True,
)


def ours() -> list[str]:
    """Return which modules of the package this process has, except those that Kombu's entry point loads."""
    entry_point = {"waooaw_celery", "waooaw_celery.wire", "waooaw_celery.wire.entry_points"}
    return [name for name in sys.modules if name.startswith("waooaw_celery") and name not in entry_point]


@app.task(name=f"{NAME}.command", bind=True)
def command(self: Any, payload: Any) -> None:
    """Note what came, and how."""
    url = os.environ["STOCK_NOTES"]
    facts = {"payload": payload, "modules": ours(), "from": self.request.headers["waooaw"]["from"]}
    with Redis.from_url(url) as client:
        client.rpush(f"stock:{NAME}", kombu_json.dumps(facts))


def main() -> None:
    """Publish, wait for each answer, and print what was sent, how, and what came back."""
    value = json.loads(sys.argv[1])
    found = []
    for serializer in ("json", "msgpack"):
        for compression in (None, "gzip", "zstd"):
            result = app.send_task(
                f"{NAME}.echo", kwargs={"value": value}, serializer=serializer, compression=compression
            )
            found.append((serializer, compression, result.get(timeout=20)))
    print(json.dumps({"answers": found, "modules": ours()}))


if __name__ == "__main__":
    if sys.argv[1] == "work":
        app.Worker(pool="solo", hostname=f"{NAME}@stock").start()
    else:
        main()
