"""The same work for huey, the fastest of the peers on Redis: a competitor of the benchmark of the transport."""

from __future__ import annotations

import os
from typing import Any

from huey import RedisHuey


def make_huey(url: str) -> Any:
    """Return a huey with a task that does nothing; its queue's key is ``huey.storage.queue_key``.

    Args:
        url: of a Redis, as redis-py knows it.
    """
    found = RedisHuey("plain", url=url, results=False)
    found.work = found.task(name="work")(_work)
    return found


def _work(payload: object) -> None:
    """Do nothing."""


if "HUEY_URL" in os.environ:
    huey = make_huey(os.environ["HUEY_URL"])
