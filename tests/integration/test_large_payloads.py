"""A large payload costs little: it is encoded once for a send, and the ledger stores the same text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import signals
from sqlalchemy import String, cast, select
from support import Broker

from waooaw_celery import AgentApp, Message, MessageAuditTrail, MessageBus, RequestResponseHandler
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import MessageRow
from waooaw_celery.ledger.database.rows import digest, payload_text
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.queues import agent_queue
from waooaw_celery.wire import formats
from waooaw_celery.wire.formats import JSON_FORMAT, Format, register_format

LARGE = "a large text, which repeats itself. " * 30_000
#: Payloads whose text in a JSON body differs from the readable one of the ledger, and others.
PAYLOADS: dict[str, Any] = {
    "text": LARGE,
    "dict": {"text": LARGE, "numbers": [1, 2.5, None, True]},
    "escaped": {"quoted": f'"\\u00fc" and \\ {LARGE}'},
    "not ASCII": {"ü": f"ü 😀 {LARGE}"},
    "control characters": f"\x00\x1f\x7f\n{LARGE}",
    "surrogate": f"\ud800{LARGE}",
    "tagged": {"at": datetime(2026, 11, 29, tzinfo=UTC), "raw": b"\x00", "text": LARGE},
    "like the end of a body": [LARGE, '], {}, {"callbacks": null}]'],
}


@pytest.fixture
def recipient(broker: Broker, app: AgentApp) -> Iterator[str]:
    """The name of an agent without a worker. Its queue is removed after the test."""
    name = broker.name()
    app.conf.waooaw_agents = [name]
    yield name
    with app.connection_for_write() as connection, connection.channel() as channel:
        agent_queue(name)(channel).delete()


@pytest.fixture
def counting() -> Iterator[list[int]]:
    """A format ``counting``, and the number of values that each encoding of a large body had."""
    calls: list[int] = []

    def encode(value: Any) -> str | bytes:
        text = JSON_FORMAT.encode(value)
        if len(text) > len(LARGE):
            calls.append(len(text))
        return text

    register_format(
        Format(
            name="counting",
            content_type="application/x-counting",
            content_encoding="utf-8",
            encode=encode,
            decode=JSON_FORMAT.decode,
        )
    )
    yield calls
    for name in ("counting", "application/x-counting"):
        del formats._formats[name]


def test_a_large_payload_is_encoded_once(app: AgentApp, recipient: str, counting: list[int]) -> None:
    """The check before the publish, and the publish itself, use the same encoded body."""
    bus = MessageBus(app)
    bus.send(Message(from_agent="tests", to_agent=recipient, payload=LARGE, serializer="counting"))
    assert len(counting) == 1


def test_a_receiver_of_celerys_signal_may_change_the_arguments(
    app: AgentApp, recipient: str, counting: list[int]
) -> None:
    """With such a receiver, the body is encoded after it was called."""

    def change(body: Any, **_: Any) -> None:
        body[1]["more"] = 1

    signals.before_task_publish.connect(change)
    try:
        message = Message(from_agent="tests", to_agent=recipient, payload=LARGE, serializer="counting")
        MessageBus(app).send(message)
    finally:
        signals.before_task_publish.disconnect(change)
    assert [size - counting[0] for size in counting] == [0, len('"more": 1')]


@pytest.mark.parametrize("name", PAYLOADS)
def test_the_ledger_stores_a_large_payload_as_a_small_one(ledger_broker: Broker, name: str) -> None:
    """Its text is readable JSON, its digest is that of the payload, and both are read as they were sent."""
    payload, agent = PAYLOADS[name], ledger_broker.name()
    with closing(ledger_broker.app(waooaw_agents=agent)) as app:
        bus = MessageBus(app)
        command = bus.send(Message(from_agent="tests", to_agent=agent, payload=payload)).message_id
        request = (
            RequestResponseHandler(app).send_request(agent, "sum", {"payload": payload}, timeout=0.1).message_id
        )
        with app.connection_for_write() as connection, connection.channel() as channel:
            agent_queue(agent)(channel).delete()
        for id_, sent in ((command, payload), (request, {"payload": payload})):
            with app.database.begin("read a payload's text") as connection:
                query = select(cast(MessageRow.payload, String)).where(MessageRow.message_id == id_)
                assert connection.scalar(query) == payload_text(sent)
            record = MessageAuditTrail(app.ledger).receipt(id_)
            assert (record.payload, record.payload_digest) == (sent, digest(sent))


@pytest.mark.parametrize("name", PAYLOADS)
def test_sqlite_stores_the_text_that_postgresql_stores(database: Database, name: str) -> None:
    """The text of a payload does not depend on the database."""
    message = Message(from_agent="boss", to_agent="worker", payload=PAYLOADS[name])
    with closing(Ledger(database, RetentionPolicy.DAYS_30)) as ledger:
        ledger.begin_recording([(message, "command")])()
    with database.begin("read a payload's text") as connection:
        query = select(cast(MessageRow.payload, String)).where(MessageRow.message_id == message.message_id)
        assert connection.scalar(query) == payload_text(PAYLOADS[name])
