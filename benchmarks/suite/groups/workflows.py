"""How many steps workflows make a second, and how long they take, beside DBOS and Celery's canvas."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any

from celery import Celery, chain, chord

from benchmarks.suite.groups.handling import ledger
from benchmarks.suite.groups.requests import duration, start, wait_until
from benchmarks.suite.groups.sending import COMMIT, commit_a_row
from benchmarks.suite.row import Context, Group, Row, Sample, Subject
from waooaw_celery import AgentApp, create_app
from waooaw_celery.agents import Workflows, aio

#: Steps of the one workflow; workflows at once, and the steps of each; requests at once.
STEPS, WORKFLOWS, STEPS_EACH, MANY = 200, 100, 10, 1000
#: Seconds that a workflow may take.
DEADLINE_SECONDS = 120.0
ASKED = "asked-by-flows"
DBOS_ONE, DBOS_MANY = "DBOS, one at a time", "DBOS, 100 at once"
DBOS_SHORT, DBOS_TEN = "DBOS, 1 step", "DBOS, 10 steps"
PLAIN_REQUESTS = "1,000 requests without a workflow"
CHAIN, CHORD = "Celery chain of 10", "Celery chord of 1,000"


def workflows(context: Context) -> Group:
    """Return the group."""
    app = application(context)
    found = Workflows(app)

    def run(name: str, **given: Any) -> Any:
        return found.result(found.start(f"flows.{name}", given).workflow_id, DEADLINE_SECONDS)

    def at_once() -> int:
        ids = [found.start("flows.local", {"steps": STEPS_EACH}).workflow_id for _ in range(WORKFLOWS)]
        for id_ in ids:
            found.result(id_, DEADLINE_SECONDS)
        return WORKFLOWS * STEPS_EACH

    def one_at_a_time() -> int:
        run("local", steps=STEPS)
        return STEPS

    def fan_out() -> int:
        run("ask_many", count=MANY)
        return MANY

    subjects = {
        COMMIT: context.rate(commit_a_row(context.database_url)),
        "one at a time": context.rate(one_at_a_time),
        "100 at once": context.rate(at_once),
        "1 step": duration(context, lambda: run("local", steps=1)),
        "10 steps": duration(context, lambda: run("local", steps=10)),
        "10 requests": duration(context, lambda: run("ask", count=10)),
        "fan-out": context.rate(fan_out),
        PLAIN_REQUESTS: context.rate(lambda: asyncio.run(requests(app))),
    }
    subjects |= canvas(context)
    peers = dbos(context)
    return Group(
        "Workflows, ledger strict",
        subjects | peers,
        [
            Row("local steps, one at a time", "one at a time", COMMIT, 0.3, others=tuple(peers)[:1]),
            Row("local steps, 100 workflows at once", "100 at once", COMMIT, 0.3, others=tuple(peers)[1:2]),
            Row("a fan-out of 1,000 requests", "fan-out", PLAIN_REQUESTS, 0.77, others=(CHORD,)),
            Row("10 requests, one after the other", "10 requests", CHAIN, unit="ms", at_most=True),
            *comparisons(peers),
        ],
    )


def application(context: Context) -> AgentApp:
    """Start the workers, and return an application that starts workflows."""
    env = ledger(context, "strict")
    start(context, "benchmarks.agent_worker", {**env, "BENCH_AGENT": ASKED})
    start(context, "benchmarks.workflow_worker", env)
    settings = {name.lower(): value for name, value in env.items()}
    app = create_app(
        broker_url=context.redis_url, result_backend=context.redis_url, waooaw_sender="bench", **settings
    )
    context.stack.enter_context(closing(app))
    names = {ASKED, "flows"}
    wait_until(lambda: names <= {each.name for each in app.registry.all() if each.workers})
    return app


async def requests(app: AgentApp) -> int:
    """Await requests at the same time, without a workflow."""
    handler = aio.RequestResponseHandler(app)
    return sum(
        1 for _ in await asyncio.gather(*(handler.request(ASKED, "echo_async", {"value": 1}) for _ in range(MANY)))
    )


def canvas(context: Context) -> dict[str, Any]:
    """Return Celery's chain and chord, on the same Redis."""
    url = context.redis_url
    celery: Any = context.stack.enter_context(closing(Celery("plain", broker=url, backend=url)))
    start(context, "benchmarks.plain_worker", {})
    echo = celery.signature("plain.echo", args=(1,), immutable=True).set(queue="plain")
    wait_until(lambda: echo.delay().get(timeout=DEADLINE_SECONDS) == 1)

    def one_chord() -> int:
        chord([echo.clone() for _ in range(MANY)], echo.clone(), app=celery).delay().get(timeout=DEADLINE_SECONDS)
        return MANY

    ten = chain(*(echo.clone() for _ in range(10)), app=celery)
    return {
        CHAIN: duration(context, lambda: ten.delay().get(timeout=DEADLINE_SECONDS)),
        CHORD: context.rate(one_chord),
    }


def dbos(context: Context) -> dict[str, Any]:
    """Return what DBOS does on the same PostgreSQL, if it is installed."""
    one = context.peers.rates("workflow", steps=STEPS).get("DBOS")
    many = context.peers.rates("workflows", count=WORKFLOWS, steps=STEPS_EACH).get("DBOS")
    short = context.peers.rates("short_workflow", steps=1).get("DBOS")
    ten = context.peers.rates("short_workflow", steps=10).get("DBOS")
    if one is None or many is None or short is None or ten is None:
        return {}
    return {DBOS_ONE: one, DBOS_MANY: many, DBOS_SHORT: as_time(short), DBOS_TEN: as_time(ten)}


def as_time(rate: Subject) -> Subject:
    """Return a subject whose value is the mean time in milliseconds instead of the rate."""
    return lambda: Sample(1000 / rate().value)


def comparisons(peers: dict[str, Any]) -> list[Row]:
    """Return the rows that compare with DBOS."""
    if not peers:
        return []
    return [
        Row("local steps, one at a time, against DBOS", "one at a time", DBOS_ONE, 5.0),
        Row("local steps, 100 at once, against DBOS", "100 at once", DBOS_MANY, 1.0),
        Row("start to finish, 1 step", "1 step", DBOS_SHORT, 1.0, unit="ms", at_most=True),
        Row("start to finish, 10 steps", "10 steps", DBOS_TEN, 1.0, unit="ms", at_most=True),
    ]
