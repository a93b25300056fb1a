"""Sending in a transaction: a message is sent if, and only if, the transaction is committed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from uuid import uuid4

import pytest
from proxy import proxied
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session
from support import Broker, lone_database, settled

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RateLimitExceeded, create_app
from waooaw_celery.errors import ConfigurationError, InvalidMessage, UnknownMessage
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.messages.queues import agent_queue, queue_depth


@pytest.fixture
def broker(ledgered_broker: Broker) -> Broker:
    """Each broker in turn, both with the ledger."""
    return ledgered_broker


@pytest.fixture
def engine(broker: Broker) -> Iterator[Engine]:
    """The user's own engine, with a table of the user's."""
    assert broker.database_url is not None
    engine = create_engine(broker.database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS orders (id text)"))
    yield engine
    engine.dispose()


@pytest.fixture
def away(broker: Broker, app: AgentApp) -> str:
    """Name of an agent that is known, and whose worker does not run."""
    name = broker.name()
    app.registry.declare(name, ["command"], f"{name}@nowhere", lifetime=60.0)
    return name


def order(session: Session) -> str:
    """Do what the message tells of."""
    id_ = str(uuid4())
    session.execute(text("INSERT INTO orders VALUES (:id)"), {"id": id_})
    return id_


def message(to: str) -> Message:
    """Return a message."""
    return Message(from_agent="tests", to_agent=to)


def waiting(app: AgentApp, name: str) -> int:
    """Return how many messages wait for an agent."""
    with app.connection_for_write() as connection:
        return queue_depth(connection, agent_queue(name)).total


def test_a_message_is_sent_when_the_transaction_is_committed(app: AgentApp, engine: Engine, probe: str) -> None:
    """Before that nobody knows of it; afterwards it is like any other."""
    bus, sent = MessageBus(app), message(probe)
    with Session(engine) as session:
        order(session)
        receipt = bus.send(sent, session=session)
        assert receipt.status is MessageStatus.PENDING
        with pytest.raises(UnknownMessage):
            bus.receipt(sent.message_id)
        session.commit()
        assert settled(app, sent.message_id) is MessageStatus.HANDLED
        again = message(probe)
        bus.send(again, session=session)
        session.commit()
    assert settled(app, again.message_id) is MessageStatus.HANDLED


def test_a_message_is_not_sent_when_the_transaction_is_rolled_back(
    app: AgentApp, engine: Engine, away: str
) -> None:
    """Nor when the session is closed; the next transaction of the session is one of its own."""
    bus = MessageBus(app)
    with Session(engine) as session:
        bus.send(message(away), session=session)
        session.rollback()
        kept = message(away)
        bus.send(kept, session=session)
        session.commit()
        bus.send(message(away), session=session)
    assert waiting(app, away) == 1
    assert bus.receipt(kept.message_id).status is MessageStatus.SENT


def test_a_savepoint_takes_back_only_what_was_sent_in_it(app: AgentApp, engine: Engine, away: str) -> None:
    """Its end is not the end of the transaction."""
    bus = MessageBus(app)
    with Session(engine) as session, session.begin():
        with session.begin_nested():
            bus.send_many([message(away), message(away)], session=session)
        assert waiting(app, away) == 0
        taken_back = session.begin_nested()
        bus.send(message(away), session=session)
        taken_back.rollback()
        bus.send(message(away), session=session)
        assert waiting(app, away) == 0
    assert waiting(app, away) == 3


def test_what_is_wrong_with_a_message_is_said_before_the_commit(app: AgentApp, engine: Engine, away: str) -> None:
    """A second time is refused, as is what a limit does not allow; the transaction itself is none the worse."""
    bus, sent = MessageBus(app), message(away)
    with Session(engine) as session, session.begin():
        bus.send(sent, session=session)
        with pytest.raises(InvalidMessage, match="sent already"):
            bus.send(sent, session=session)
        order(session)
    assert waiting(app, away) == 1


def test_a_limit_counts_when_it_is_sent(broker: Broker, engine: Engine, away: str) -> None:
    """And not at the commit, when nobody could be told."""
    with (
        closing(broker.app(waooaw_rate_limit="1/hour", waooaw_sender="limited")) as app,
        Session(engine) as session,
    ):
        name = f"s-{uuid4().hex[:8]}"
        bus = MessageBus(app)
        bus.send(Message(from_agent=name, to_agent=away), session=session)
        with pytest.raises(RateLimitExceeded):
            bus.send(Message(from_agent=name, to_agent=away), session=session)
        session.commit()
    with closing(broker.app()) as app:
        assert waiting(app, away) == 1


def test_a_broker_that_is_away_does_not_undo_the_commit(
    broker: Broker, engine: Engine, away: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is committed, and the message is written down with it: it stays PENDING, and the log says so."""
    amqp = broker.url.startswith("amqp")
    with proxied(broker.url) as line:
        url = f"amqp://guest:guest@127.0.0.1:{line.port}//" if amqp else f"redis://127.0.0.1:{line.port}/"
        with (
            closing(broker.app(broker_url=url, result_backend=broker.redis_url)) as app,
            Session(engine) as session,
        ):
            id_, sent = order(session), message(away)
            MessageBus(app).send(sent, session=session)
            line.close()
            with caplog.at_level(logging.WARNING, "waooaw_celery"):
                session.commit()
            assert session.scalar(text("SELECT count(*) FROM orders WHERE id = :id"), {"id": id_}) == 1
            assert MessageBus(app).receipt(sent.message_id).status is MessageStatus.PENDING
    assert "outbox_waits" in [record.__dict__.get("action") for record in caplog.records]


def test_only_the_ledgers_own_database_will_do(
    broker: Broker, app: AgentApp, engine: Engine, away: str, postgres_url: str, redis_url: str
) -> None:
    """Another one, also one with a ledger of its own, is refused, and so is what is no session, or no ledger."""
    bus = MessageBus(app)
    with lone_database(postgres_url) as url:
        other = create_engine(url)
        for step in ("without", "with"):
            if step == "with":
                with closing(broker.app(waooaw_database_url=url)) as owner:
                    schema.upgrade(owner.database)
            with Session(other) as session, pytest.raises(ConfigurationError, match="another database"):
                bus.send(message(away), session=session)
        other.dispose()
    with pytest.raises(ConfigurationError, match="SQLAlchemy Session"):
        bus.send(message(away), session=engine)
    with (
        closing(create_app(broker_url=redis_url, waooaw_agents=[away])) as ledgerless,
        Session(engine) as session,
        pytest.raises(ConfigurationError, match="no ledger"),
    ):
        MessageBus(ledgerless).send(message(away), session=session)
