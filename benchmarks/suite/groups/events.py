"""How fast events are published to 1, 10 and 100 subscribers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.payload import PAYLOAD
from benchmarks.suite.groups.sending import make_bus, pipeline
from benchmarks.suite.row import Context, Group, Row, Subject
from waooaw_celery import EventBus
from waooaw_celery.store.subscriptions import Subscription

#: How many subscribers a topic has, and what our rate should be as a multiple of a pipeline's.
TARGETS = {1: 0.53, 10: 0.48, 100: 0.64}


def events(context: Context) -> Group:
    """Return the group."""
    subjects: dict[str, Subject] = {}
    rows = []
    strict = make_event_bus(context, waooaw_database_url=context.database_url)
    without = make_event_bus(context)
    for count, target in TARGETS.items():
        base, lists = f"pipeline of {count}", [f"fan-{number}" for number in range(count)]
        subjects[base] = context.rate(_once(pipeline(context.redis_url, lists)))
        subjects[f"publish to {count}"] = context.rate(publish(without, count))
        subjects[f"publish to {count}, strict"] = context.rate(publish(strict, count))
        peers = {
            f"{name}, {count} lists": subject
            for name, subject in context.peers.rates("publish", count=count).items()
        }
        subjects |= peers
        what = f"publish to {count} subscriber{'s' if count > 1 else ''}"
        rows.append(Row(f"{what}, no ledger", f"publish to {count}", base, target, others=tuple(peers)))
        rows.append(Row(f"{what}, ledger strict", f"publish to {count}, strict", base))
    return Group("Events", subjects, rows)


def make_event_bus(context: Context, **settings: Any) -> EventBus:
    """Return a bus of an application of its own, with subscriptions."""
    app = make_bus(context, agent="publisher", **settings).app
    app.subscriptions.declare(
        [
            Subscription(agent=f"agent-{number}", name=f"to_{count}", patterns=(f"fan.{count}.*",))
            for count in TARGETS
            for number in range(count)
        ]
    )
    return EventBus(app)


def publish(bus: EventBus, count: int) -> Callable[[], int]:
    """Publish one event, which as many subscribers get."""

    def once() -> int:
        receipts = bus.publish(f"fan.{count}.x", PAYLOAD).receipts
        if len(receipts) != count:
            raise SystemExit(f"{len(receipts)} instead of {count} subscribers got the event")
        return 1

    return once


def _once(work: Callable[[], int]) -> Callable[[], int]:
    """Count one event, not its messages."""
    return lambda: min(work(), 1)
