"""How fast a worker handles messages: one process and two, with the ledger and without."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from celery import Celery
from kombu import Queue

from benchmarks.payload import PAYLOAD
from benchmarks.suite.groups.sending import make_bus, message, redis_client
from benchmarks.suite.peers import Peers, program
from benchmarks.suite.row import Context, Group, Row, Sample, Subject
from benchmarks.suite.workers import ROOT, Emptying
from waooaw_celery import MessageBus
from waooaw_celery.messages.queues import agent_queue, queue_depth

#: The pools: the options of the worker, and what our rates should be as a multiple of plain Celery's.
POOLS = {
    "solo": (["-P", "solo", "-c", "1"], {"no ledger": 3.0, "batched": 2.5, "strict": 1.2}),
    "prefork 2": (["-P", "prefork", "-c", "2"], {"no ledger": 2.0, "batched": 1.8, "strict": 1.0}),
}

#: How many messages a handler of batches gets at once, what its rate should be as a multiple of plain Celery's
#: solo rate, and how many times more messages it gets: it empties a short queue before its length can be read.
BATCH, BATCH_TARGET, BATCH_SHARE = 100, 40.0, 10


def handling(context: Context, pools: tuple[str, ...] = tuple(POOLS)) -> Group:
    """Return the group."""
    subjects: dict[str, Subject] = {}
    rows: list[Row] = []
    peers = peer_subjects(context)
    for pool in pools:
        options, targets = POOLS[pool]
        base = f"Celery, {pool}"
        subjects[base] = emptied_by_celery(context, context.redis_url, options)
        for kind, target in targets.items():
            name = f"{kind}, {pool}"
            subjects[name] = emptied_by_agent(context, context.redis_url, options, ledger(context, kind))
            others = tuple(peers) if name == "no ledger, solo" else ()
            what = kind if kind == "no ledger" else f"ledger {kind}"
            rows.append(Row(f"handle, {pool}, {what}", name, base, target, others=others))
    return Group("Handling", subjects | peers, rows)


def handling_batches(context: Context) -> Group:
    """Return the row of a handler of batches."""
    solo = ["-P", "solo", "-c", "1"]
    larger = replace(context, messages=context.messages * BATCH_SHARE)
    env = {"BENCH_BATCH": str(BATCH)}
    subjects = {
        "Celery, solo": emptied_by_celery(context, context.redis_url, solo),
        "batches": emptied_by_agent(larger, context.redis_url, solo, env),
        "batches, ledger batched": emptied_by_agent(
            larger, context.redis_url, solo, env | ledger(context, "batched")
        ),
        "batches, ledger strict": emptied_by_agent(
            larger, context.redis_url, solo, env | ledger(context, "strict")
        ),
        f"RPOP {BATCH} and decode": popped(larger),
    }
    floor = (f"RPOP {BATCH} and decode",)
    rows = [
        Row("handle in batches, no ledger", "batches", "Celery, solo", BATCH_TARGET, others=floor),
        Row("handle in batches, ledger batched", "batches, ledger batched", "Celery, solo"),
        Row("handle in batches, ledger strict", "batches, ledger strict", "Celery, solo"),
    ]
    return Group("Handling in batches", subjects, rows)


def popped(context: Context) -> Subject:
    """Pop payloads in batches and decode them, with no receipt and no acknowledgement: the floor on Redis."""
    client, text = redis_client(context.redis_url), json.dumps(PAYLOAD)

    def sample() -> Sample:
        client.delete("floor-batches")
        for _ in range(0, context.messages, 1000):
            client.lpush("floor-batches", *([text] * 1000))
        began, count = time.perf_counter(), 0
        while items := client.rpop("floor-batches", BATCH):
            count += len([json.loads(item) for item in items])
        return Sample(count / (time.perf_counter() - began))

    return sample


def handling_solo(context: Context) -> Group:
    """Return the rows of one process only."""
    return handling(context, ("solo",))


def ledger(context: Context, kind: str) -> dict[str, str]:
    """Return the environment of a worker with this kind of ledger."""
    if kind == "no ledger":
        return {}
    settings = {"WAOOAW_DATABASE_URL": context.database_url, "WAOOAW_SPOOL_FOLDER": f"{context.folder}/spool"}
    return settings | ({"WAOOAW_AUDIT_MODE": "batched"} if kind == "batched" else {})


def worker_command(module: str, options: list[str]) -> list[str]:
    """Return the command of a Celery worker."""
    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", module, "worker", *options]
    return [*command, "--without-mingle", "--without-gossip", "-n", f"bench-{time.monotonic_ns()}@%h"]


def emptied_by_agent(context: Context, broker_url: str, options: list[str], env: Mapping[str, str]) -> Subject:
    """Let a worker of this package empty its agent's queue."""
    settings = {name.lower(): value for name, value in env.items() if not name.startswith("BENCH_")}
    # An agent's workers all write to the same ledger.
    agent = f"receiver-{time.monotonic_ns()}"
    bus = make_bus(context, broker_url, agent, **settings)
    urls = {"CELERY_BROKER_URL": broker_url, "WAOOAW_REDIS_URL": context.redis_url, "BENCH_AGENT": agent}
    command = worker_command("benchmarks.agent_worker", options)
    return _subject(context, emptying(context, bus, agent, command, {**urls, **env}))


def emptying(
    context: Context, bus: MessageBus, agent: str, command: list[str], env: Mapping[str, str]
) -> Emptying:
    """Return the queue of an agent, and a worker that empties it."""
    connection = context.stack.enter_context(bus.app.connection_for_write())
    queue = agent_queue(agent)
    return Emptying(
        fill=lambda count: bus.send_many(message(agent) for _ in range(count)),
        depth=lambda: queue_depth(connection, queue).total,
        clear=partial(purge, queue, connection),
        command=command,
        env=env,
    )


def purge(queue: Queue, connection: Any) -> None:
    """Empty a queue."""
    with connection.channel() as channel:
        bound = queue(channel)
        bound.declare()
        bound.purge()


def emptied_by_celery(context: Context, broker_url: str, options: list[str], **env: str) -> Subject:
    """Let a plain Celery worker, which acknowledges late, empty its queue."""
    plain: Any = context.stack.enter_context(closing(Celery("plain", broker=broker_url)))
    connection = context.stack.enter_context(plain.connection_for_write())
    queue = plain.amqp.queues.select_add("plain")

    def fill(count: int) -> None:
        task = plain.signature("plain.work", args=(PAYLOAD,), ignore_result=True)
        for _ in range(count):
            task.apply_async(queue="plain")

    def clear() -> None:
        with connection.channel() as channel:
            bound = queue(channel)
            bound.declare()
            bound.purge()

    return _subject(
        context,
        Emptying(
            fill=fill,
            depth=lambda: int(connection.default_channel.queue_declare("plain", passive=True).message_count),
            clear=clear,
            command=worker_command("benchmarks.plain_worker", options),
            env={"CELERY_BROKER_URL": broker_url, **env},
        ),
    )


def peer_subjects(context: Context) -> dict[str, Subject]:
    """Return the workers of other projects, each one process that handles one message after another."""
    if not isinstance(context.peers, Peers):
        return {}
    url, able = context.peers.url, context.peers.able
    client = redis_client(context.redis_url)
    known: dict[str, tuple[str, list[str]]] = {
        "huey": (
            "huey.redis.plain",
            ["huey_consumer", "-q", "-k", "thread", "-w", "1", "benchmarks.huey_worker.huey"],
        ),
        "Dramatiq": ("dramatiq:default", ["dramatiq", "-p", "1", "-t", "1", "benchmarks.peer_workers"]),
        "FastStream": ("faststream", ["faststream", "run", "benchmarks.peer_workers:app"]),
        "taskiq": ("taskiq", ["taskiq", "worker", "-w", "1", "benchmarks.peer_workers:broker"]),
    }

    def make(name: str, queue: str, command: list[str]) -> Subject:
        return _subject(
            context,
            Emptying(
                fill=lambda count: _send_with_peer(context, name, queue, client, count),
                depth=lambda: int(client.llen(queue)),
                clear=lambda: client.delete(queue),
                command=[str(program(name, command[0])), *command[1:]],
                env={"PEER": name, "PEER_URL": url, "HUEY_URL": url, "PYTHONPATH": str(ROOT)},
            ),
        )

    return {name: make(name, *found) for name, found in known.items() if name in able}


def _send_with_peer(context: Context, name: str, queue: str, client: Any, count: int) -> None:
    send = context.peers.rates("send")[name]
    while client.llen(queue) < count:
        send()


def _subject(context: Context, emptying: Emptying) -> Subject:
    log = context.folder / f"worker-{time.monotonic_ns()}.log"
    return lambda: emptying.sample(context.messages, log)
