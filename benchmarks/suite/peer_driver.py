"""Sends messages with another project, in its environment. It answers one JSON line for each that it reads.

First it prints what the project can do. Then each line names a work, its arguments and the seconds for which to
repeat it. The answer has the number of messages, the seconds and the processor time.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.payload import PAYLOAD

Work = Callable[[], int]


def huey(url: str) -> dict[str, Callable[..., Work]]:
    """Return what huey can do."""
    from benchmarks.huey_worker import make_huey

    task = make_huey(url).work

    def once() -> int:
        task(PAYLOAD)
        return 1

    return {"send": lambda: once}


def dramatiq(url: str) -> dict[str, Callable[..., Work]]:
    """Return what Dramatiq can do."""
    from benchmarks.peer_workers import make_dramatiq

    actor = make_dramatiq(url)

    def once() -> int:
        actor.send(PAYLOAD)
        return 1

    return {"send": lambda: once}


def faststream(url: str) -> dict[str, Callable[..., Work]]:
    """Return what FastStream can do."""
    from faststream.redis import RedisBroker

    loop = asyncio.new_event_loop()
    broker: Any = RedisBroker(url)
    loop.run_until_complete(broker.connect())

    async def each(lists: list[str]) -> int:
        for name in lists:
            await broker.publish(PAYLOAD, list=name)
        return 1

    async def batch(count: int) -> int:
        await broker.publish_batch(*([PAYLOAD] * count), list="faststream-many")
        return count

    async def ask() -> int:
        await broker.request(1, channel="faststream-echo", timeout=10)
        return 1

    def repeat(make: Callable[..., Any], *arguments: Any) -> Work:
        return lambda: int(loop.run_until_complete(make(*arguments)))

    return {
        "send": lambda: repeat(each, ["faststream"]),
        "send_many": lambda count: repeat(batch, count),
        "publish": lambda count: repeat(each, [f"faststream-{number}" for number in range(count)]),
        "request": lambda: repeat(ask),
    }


def taskiq(url: str) -> dict[str, Callable[..., Work]]:
    """Return what taskiq can do."""
    from benchmarks.peer_workers import make_taskiq

    loop = asyncio.new_event_loop()
    broker, task = make_taskiq(url)
    loop.run_until_complete(broker.startup())

    async def once() -> int:
        await task.kiq(PAYLOAD)
        return 1

    return {"send": lambda: lambda: loop.run_until_complete(once())}


def arq(url: str) -> dict[str, Callable[..., Work]]:
    """Return what arq can do."""
    from arq import create_pool
    from arq.connections import RedisSettings

    loop = asyncio.new_event_loop()
    pool: Any = loop.run_until_complete(create_pool(RedisSettings(unix_socket_path=url.removeprefix("unix://"))))

    async def once() -> int:
        await pool.enqueue_job("work", PAYLOAD)
        return 1

    return {"send": lambda: lambda: loop.run_until_complete(once())}


def dbos(_: str) -> dict[str, Callable[..., Work]]:
    """Return what DBOS can do, on PostgreSQL."""
    from dbos import DBOS

    url = os.environ["PEER_DATABASE"].replace("postgresql+psycopg2", "postgresql")
    DBOS(config={"name": "bench", "system_database_url": url, "run_admin_server": False, "log_level": "ERROR"})

    @DBOS.step()  # type: ignore[untyped-decorator]
    def act(number: int) -> int:
        return number

    @DBOS.workflow()  # type: ignore[untyped-decorator]
    def local(steps: int) -> int:
        return sum(act(number) for number in range(steps))

    DBOS.launch()

    def one(steps: int) -> int:
        local(steps)
        return steps

    def short(steps: int) -> int:
        local(steps)
        return 1

    def many(count: int, steps: int) -> int:
        for handle in [DBOS.start_workflow(local, steps) for _ in range(count)]:
            handle.get_result()
        return count * steps

    return {
        "workflow": lambda steps: lambda: one(steps),
        "short_workflow": lambda steps: lambda: short(steps),
        "workflows": lambda count, steps: lambda: many(count, steps),
    }


PROJECTS = {
    "huey": huey,
    "Dramatiq": dramatiq,
    "FastStream": faststream,
    "taskiq": taskiq,
    "arq": arq,
    "DBOS": dbos,
}


def main(project: str, url: str) -> None:
    """Answer until standard input ends."""
    works = PROJECTS[project](url)
    _answer({"able": list(works)})
    made: dict[str, Work] = {}
    for line in sys.stdin:
        request = json.loads(line)
        key = json.dumps([request["work"], request["arguments"]])
        try:
            if key not in made:
                made[key] = works[request["work"]](**request["arguments"])
                made[key]()
            _answer(_repeat(made[key], request["seconds"]))
        except Exception as error:  # noqa: BLE001 - the benchmark prints it
            _answer({"error": f"{type(error).__name__}: {error}"})


def _repeat(work: Work, seconds: float) -> dict[str, float]:
    began, processor, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        done += work()
    return {"done": done, "seconds": time.perf_counter() - began, "cpu": time.process_time() - processor}


def _answer(answer: object) -> None:
    sys.__stdout__.write(json.dumps(answer) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    main(*sys.argv[1:])
