"""How fast events are published, at a fan-out of 1, 10 and 100, against as many messages sent one by one.

python -m benchmarks.events [--rounds 7]

One process on an embedded Valkey and an embedded PostgreSQL with its default durability; nobody consumes. In each
round every subject works for half a second, in an order that is reversed each time; the medians of the rounds are
compared. Computers differ and have neighbours: only the ratios of one run mean something.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack, closing
from typing import Any

from sqlalchemy.engine import make_url

from benchmarks.report import Goal, report
from benchmarks.sending import PAYLOAD, Subject, measure
from waooaw_celery import EventBus, Message, MessageBus, create_app
from waooaw_celery.embedded import postgres, valkey
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.store.subscriptions import Subscription

#: How many subscribers a topic has.
FAN_OUTS = (1, 10, 100)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with valkey() as redis_url, postgres() as database_url, ExitStack() as stack:
        events = measure(make_subjects(redis_url, database_url, stack), rounds)
    single = events["send, one message, strict"]
    told = {
        name: rate * int(name.split()[2].rstrip(","))
        for name, rate in events.items()
        if name.startswith("publish")
    }
    report("Events", events, base="send, one message, strict", goals=[])
    report(
        "Messages to subscribers",
        {"send, one message, strict": single, **told},
        base="send, one message, strict",
        goals=[
            Goal("publish to 1, strict / send", told["publish to 1, strict"] / single, 0.5),
            Goal("messages of publish to 100, strict / send", told["publish to 100, strict"] / single, 5.0),
        ],
    )


def make_subjects(redis_url: str, database_url: str, stack: ExitStack) -> dict[str, Subject]:
    """Return what is measured: each does something once and returns how many events or messages that were."""
    settings: dict[str, Any] = {"broker_url": redis_url, "result_backend": redis_url, "waooaw_sender": "bench"}
    schema.upgrade(Database(make_url(database_url)))
    strict = stack.enter_context(closing(create_app(**settings, waooaw_database_url=database_url)))
    without = stack.enter_context(closing(create_app(**settings)))
    strict.registry.declare("receiver", ["command"], "receiver@bench", lifetime=3600)
    for app in (strict, without):
        app.subscriptions.declare(
            [
                Subscription(agent=f"agent-{number}", name=f"to_{fan_out}", patterns=(f"fan.{fan_out}.*",))
                for fan_out in FAN_OUTS
                for number in range(fan_out)
            ]
        )
    bus, message_bus = EventBus(strict), MessageBus(strict)

    def send() -> int:
        message_bus.send(Message(from_agent="bench", to_agent="receiver", payload=PAYLOAD))
        return 1

    def publish(bus: EventBus, fan_out: int) -> Subject:
        def once() -> int:
            assert len(bus.publish(f"fan.{fan_out}.x", PAYLOAD).receipts) == fan_out  # noqa: S101 - or it lies
            return 1

        return once

    return {
        "send, one message, strict": send,
        **{f"publish to {fan_out}, strict": publish(bus, fan_out) for fan_out in FAN_OUTS},
        **{f"publish to {fan_out} without a ledger": publish(EventBus(without), fan_out) for fan_out in FAN_OUTS},
    }


if __name__ == "__main__":
    main()
