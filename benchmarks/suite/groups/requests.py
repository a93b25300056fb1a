"""How long a request takes, and how many are answered at once."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from celery import Celery

from benchmarks.suite.groups.handling import ledger, worker_command
from benchmarks.suite.peers import Peers, program
from benchmarks.suite.row import Context, Group, Row, Sample, Subject
from benchmarks.suite.workers import ROOT
from waooaw_celery import AgentApp, RequestResponseHandler, create_app
from waooaw_celery.agents import aio
from waooaw_celery.testing.embedded import end, spawn

#: Requests that are awaited at once.
MANY = 1000
#: Parts of one streamed answer.
PARTS = 1000
#: Seconds after which a worker has not started.
DEADLINE_SECONDS = 60.0
SOLO = ["-P", "solo", "-c", "1"]
GET = "Celery .delay().get()"
GET_MANY = "Celery, 1,000 at once"


def requests(context: Context) -> Group:
    """Return the group."""
    url = context.redis_url
    celery: Any = context.stack.enter_context(closing(Celery("plain", broker=url, backend=url)))
    start(context, "benchmarks.plain_worker", {})
    echo = celery.signature("plain.echo", args=(1,)).set(queue="plain")
    without = caller(context, "asked", {})
    strict = caller(context, "asked-strict", ledger(context, "strict"))
    asker = RequestResponseHandler(without)
    strict_asker = RequestResponseHandler(strict)
    wait_until(lambda: echo.delay().get(timeout=DEADLINE_SECONDS) == 1)
    subjects = {
        GET: duration(context, lambda: echo.delay().get(timeout=30)),
        "request": duration(context, lambda: asker.request("asked", "echo", {"value": 1})),
        "request, strict": duration(context, lambda: strict_asker.request("asked-strict", "echo", {"value": 1})),
        GET_MANY: context.rate(
            lambda: len([each.get(timeout=60) for each in [echo.delay() for _ in range(MANY)]])
        ),
        "1,000 requests": context.rate(lambda: asyncio.run(ask_many(without))),
        "parts of a stream": context.rate(lambda: sum(1 for _ in asker.stream("asked", "count", {"to": PARTS}))),
    }
    peers = peer_subjects(context)
    return Group(
        "Requests",
        subjects | peers,
        [
            Row("request, p50", "request", GET, 0.6, unit="ms", at_most=True, others=tuple(peers)),
            Row("request, p50, ledger strict", "request, strict", GET, 1.2, unit="ms", at_most=True),
            Row("1,000 requests at once", "1,000 requests", GET_MANY, 3.0),
            Row("parts of a streamed answer", "parts of a stream", GET_MANY),
        ],
    )


def start(context: Context, module: str, env: Mapping[str, str]) -> None:
    """Start a worker that lives as long as the group."""
    urls = {"CELERY_BROKER_URL": context.redis_url, "CELERY_RESULT_BACKEND": context.redis_url}
    log = context.folder / f"asked-{time.monotonic_ns()}.log"
    worker = spawn(worker_command(module, SOLO), log=log, env={**os.environ, **urls, **env}, cwd=ROOT)
    context.stack.callback(end, worker)


def caller(context: Context, agent: str, env: Mapping[str, str]) -> AgentApp:
    """Start an agent's worker, and return an application that asks it."""
    settings = {name.lower(): value for name, value in env.items()}
    start(context, "benchmarks.agent_worker", {**env, "BENCH_AGENT": agent})
    app = create_app(broker_url=context.redis_url, waooaw_sender="bench", **settings)
    context.stack.enter_context(closing(app))
    wait_until(lambda: any(each.name == agent and each.workers for each in app.registry.all()))
    return app


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until a worker has started."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            raise SystemExit("a worker did not start")
        time.sleep(0.05)


def duration(context: Context, ask: Callable[[], object]) -> Subject:
    """Return a subject that asks one after the other, whose value is the median time in milliseconds."""
    ask()

    def sample() -> Sample:
        times: list[float] = []
        ends_at = time.perf_counter() + context.seconds
        while time.perf_counter() < ends_at:
            began = time.perf_counter()
            ask()
            times.append((time.perf_counter() - began) * 1000)
        return Sample(statistics.median(times))

    return sample


async def ask_many(app: AgentApp) -> int:
    """Await many requests at once, and return how many were answered."""
    handler = aio.RequestResponseHandler(app)
    return sum(await asyncio.gather(*(handler.request("asked", "echo_async", {"value": 1}) for _ in range(MANY))))


def peer_subjects(context: Context) -> dict[str, Subject]:
    """Return requests of FastStream, whose mean time stands for the median."""
    if not isinstance(context.peers, Peers) or "FastStream" not in context.peers.able:
        return {}
    command = [str(program("FastStream", "faststream")), "run", "benchmarks.peer_workers:app"]
    env = {**os.environ, "PEER": "FastStream", "PEER_URL": context.peers.url, "PYTHONPATH": str(ROOT)}
    context.stack.callback(end, spawn(command, log=context.folder / "faststream.log", env=env, cwd=ROOT))
    rate = context.peers.rates("request")["FastStream"]
    return {"FastStream": lambda: Sample(1000 / rate().value)}
