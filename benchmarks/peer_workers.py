"""The same work for other projects: their workers load this module in an environment of their own.

PEER_URL is the Redis, as redis-py knows it, and PEER is the project whose objects the module has.
"""

from __future__ import annotations

import os
from typing import Any


def make_dramatiq(url: str) -> Any:
    """Return an actor of Dramatiq that does nothing."""
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    dramatiq.set_broker(RedisBroker(url=url))
    return dramatiq.actor(_work, actor_name="work")


def make_taskiq(url: str) -> tuple[Any, Any]:
    """Return a broker and a task of taskiq that does nothing."""
    from taskiq_redis import ListQueueBroker

    broker: Any = ListQueueBroker(url)
    return broker, broker.task(task_name="work")(_work_async)


def make_faststream(url: str) -> Any:
    """Return an application of FastStream with a consumer that does nothing, and one that answers."""
    from faststream import FastStream
    from faststream.redis import RedisBroker

    broker: Any = RedisBroker(url)
    broker.subscriber(list="faststream")(_work_async)
    broker.subscriber("faststream-echo")(_echo)
    return FastStream(broker)


def _work(payload: object) -> None:
    """Do nothing."""


async def _work_async(payload: dict[str, Any]) -> None:
    """Do nothing."""


async def _echo(value: int) -> int:
    """Answer."""
    return value


match os.environ.get("PEER"):
    case "Dramatiq":
        work = make_dramatiq(os.environ["PEER_URL"])
    case "FastStream":
        app = make_faststream(os.environ["PEER_URL"])
    case "taskiq":
        broker, work = make_taskiq(os.environ["PEER_URL"])
    case _:
        pass  # it is imported for its functions
