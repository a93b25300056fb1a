"""Helpers of the tests of the recovery: lose messages, recover them, and look at queues and records."""

from __future__ import annotations

import json
from typing import Any

from redis import Redis
from support import Broker

from waooaw_celery import AgentApp, Message, MessageBus
from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.maintenance.recovery import Recovery, RecoveryResult
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.store.connection import store_url


def redis_client(broker: Broker) -> Any:
    """Return a client of the broker's Valkey."""
    return Redis.from_url(store_url(broker.url))


def lose_everything(broker: Broker) -> None:
    """Empty the broker."""
    with redis_client(broker) as redis:
        redis.flushall()


def declare_agent(broker: Broker, app: AgentApp, *handlers: str) -> str:
    """Declare an agent that has no worker any more, and return its name."""
    name = broker.name()
    app.registry.declare(name, handlers or ["command"], f"{name}@gone", 0.001)
    return name


def recover(app: AgentApp, agent: str | None = None, **options: Any) -> RecoveryResult:
    """Run the recovery once, without the waiting times that real brokers and workers need."""
    return Recovery(app, after=0, pause=0.2).run(agent=agent, **options)


def send(app: AgentApp, to: str, number: int = 1, payload: Any = None, **fields: Any) -> list[str]:
    """Send messages, and return their ids when they are recorded."""
    messages = [Message(from_agent="tests", to_agent=to, payload=payload or {}, **fields) for _ in range(number)]
    ids = [receipt.message_id for receipt in MessageBus(app).send_many(messages)]
    app.receipts.flush()
    return ids


def read_record(app: AgentApp, message_id: str) -> AuditRecord:
    """Return the record of a message."""
    return MessageAuditTrail(app.ledger).receipt(message_id)


def event_names(app: AgentApp, message_id: str) -> list[str]:
    """Return the events of a message, in order."""
    return [event.event for event in read_record(app, message_id).events]


def raw_messages(broker: Broker, agent: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the encoded messages in an agent's queue with their lists, without what differs at each publish."""
    found = []
    with redis_client(broker) as redis:
        for key in sorted(redis.keys(f"{agent_queue(agent).name}*")):
            for item in redis.lrange(key, 0, -1) if not key.endswith(b"bell") else ():
                message = json.loads(item)
                del message["properties"]["delivery_tag"], message["headers"]["origin"]
                found.append((key.decode(), message))
    return found


def rebuild_message(app: AgentApp, message_id: str) -> Message:
    """Return a message as a worker knows it: with the keys of its row."""
    found = read_record(app, message_id)
    return Message(
        from_agent=found.receipt.from_agent,
        to_agent=found.receipt.to_agent,
        message_id=message_id,
        sent_at=found.receipt.sent_at,
        retention=app.settings.retention,
    )
