"""The outbox: a message is sent if, and only if, the transaction commits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from uuid import uuid4

import pytest
from proxy import proxied
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session
from support import Broker, lone_database, queue_length, settled

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RateLimitExceeded, create_app
from waooaw_celery.errors import ConfigurationError, InvalidMessage, UnknownMessage
from waooaw_celery.ledger.database import upgrade as schema


@pytest.fixture
def broker(ledgered_broker: Broker) -> Broker:
    """Each broker in turn, both with the ledger."""
    return ledgered_broker


@pytest.fixture
def engine(broker: Broker) -> Iterator[Engine]:
    """The user's own engine, and a table of the user."""
    assert broker.database_url is not None
    engine = create_engine(broker.database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS orders (id text)"))
    yield engine
    engine.dispose()


@pytest.fixture
def stopped_agent(broker: Broker, app: AgentApp) -> str:
    """The name of an agent that is declared, and whose worker does not run."""
    name = broker.name()
    app.registry.declare(name, ["command"], f"{name}@nowhere", lifetime=60.0)
    return name


def insert_order(session: Session) -> str:
    """Insert the order that the message is about."""
    id_ = str(uuid4())
    session.execute(text("INSERT INTO orders VALUES (:id)"), {"id": id_})
    return id_


def new_message(to: str) -> Message:
    """Return a message to an agent."""
    return Message(from_agent="tests", to_agent=to)


def test_a_message_is_sent_when_the_transaction_is_committed(app: AgentApp, engine: Engine, probe: str) -> None:
    """Before the commit it has no receipt. The session can be used again afterwards."""
    bus, sent = MessageBus(app), new_message(probe)
    with Session(engine) as session:
        insert_order(session)
        receipt = bus.send(sent, session=session)
        assert receipt.status is MessageStatus.PENDING
        with pytest.raises(UnknownMessage):
            bus.receipt(sent.message_id)
        session.commit()
        assert settled(app, sent.message_id) is MessageStatus.HANDLED
        second = new_message(probe)
        bus.send(second, session=session)
        session.commit()
    assert settled(app, second.message_id) is MessageStatus.HANDLED


def test_a_message_is_not_sent_when_the_transaction_is_rolled_back(
    app: AgentApp, engine: Engine, stopped_agent: str
) -> None:
    """It is not sent if the session is closed either. The session's next transaction is independent."""
    bus = MessageBus(app)
    with Session(engine) as session:
        bus.send(new_message(stopped_agent), session=session)
        session.rollback()
        kept = new_message(stopped_agent)
        bus.send(kept, session=session)
        session.commit()
        bus.send(new_message(stopped_agent), session=session)
    assert queue_length(app, stopped_agent) == 1
    assert bus.receipt(kept.message_id).status is MessageStatus.SENT


def test_a_savepoint_rolls_back_only_its_own_messages(app: AgentApp, engine: Engine, stopped_agent: str) -> None:
    """The end of a savepoint is not the end of the transaction."""
    bus = MessageBus(app)
    with Session(engine) as session, session.begin():
        with session.begin_nested():
            bus.send_many([new_message(stopped_agent), new_message(stopped_agent)], session=session)
        assert queue_length(app, stopped_agent) == 0
        savepoint = session.begin_nested()
        bus.send(new_message(stopped_agent), session=session)
        savepoint.rollback()
        bus.send(new_message(stopped_agent), session=session)
        assert queue_length(app, stopped_agent) == 0
    assert queue_length(app, stopped_agent) == 3


def test_a_message_is_checked_before_the_commit(app: AgentApp, engine: Engine, stopped_agent: str) -> None:
    """A message that was sent before is refused, and the transaction can still commit."""
    bus, sent = MessageBus(app), new_message(stopped_agent)
    with Session(engine) as session, session.begin():
        bus.send(sent, session=session)
        with pytest.raises(InvalidMessage, match="sent already"):
            bus.send(sent, session=session)
        insert_order(session)
    assert queue_length(app, stopped_agent) == 1


def test_a_rate_limit_counts_at_the_send(broker: Broker, engine: Engine, stopped_agent: str) -> None:
    """At the commit it would be too late to raise an error."""
    with (
        closing(broker.app(waooaw_rate_limit="1/hour", waooaw_sender="limited")) as app,
        Session(engine) as session,
    ):
        name = f"s-{uuid4().hex[:8]}"
        bus = MessageBus(app)
        bus.send(Message(from_agent=name, to_agent=stopped_agent), session=session)
        with pytest.raises(RateLimitExceeded):
            bus.send(Message(from_agent=name, to_agent=stopped_agent), session=session)
        session.commit()
    with closing(broker.app()) as app:
        assert queue_length(app, stopped_agent) == 1


def test_a_broker_that_is_down_does_not_undo_the_commit(
    broker: Broker, engine: Engine, stopped_agent: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The message is committed too: it stays PENDING, and a warning is logged."""
    with (
        proxied(broker.url) as proxy,
        closing(broker.app(broker_url=proxy.url, result_backend=broker.redis_url)) as app,
        Session(engine) as session,
    ):
        id_, sent = insert_order(session), new_message(stopped_agent)
        MessageBus(app).send(sent, session=session)
        proxy.close()
        with caplog.at_level(logging.WARNING, "waooaw_celery"):
            session.commit()
        assert session.scalar(text("SELECT count(*) FROM orders WHERE id = :id"), {"id": id_}) == 1
        assert MessageBus(app).receipt(sent.message_id).status is MessageStatus.PENDING
    assert "outbox_waits" in [record.__dict__.get("action") for record in caplog.records]


def test_only_sessions_on_the_ledgers_database_are_accepted(
    broker: Broker, app: AgentApp, engine: Engine, stopped_agent: str, postgres_url: str, redis_url: str
) -> None:
    """Another database is refused, also one with a ledger, and so is an engine instead of a session."""
    bus = MessageBus(app)
    with lone_database(postgres_url) as url:
        other = create_engine(url)
        for has_ledger in (False, True):
            if has_ledger:
                with closing(broker.app(waooaw_database_url=url)) as owner:
                    schema.upgrade(owner.database)
            with Session(other) as session, pytest.raises(ConfigurationError, match="not the ledger's database"):
                bus.send(new_message(stopped_agent), session=session)
        other.dispose()
    with pytest.raises(ConfigurationError, match="SQLAlchemy Session"):
        bus.send(new_message(stopped_agent), session=engine)
    with (
        closing(create_app(broker_url=redis_url, waooaw_agents=[stopped_agent])) as ledgerless,
        Session(engine) as session,
        pytest.raises(ConfigurationError, match="no ledger"),
    ):
        MessageBus(ledgerless).send(new_message(stopped_agent), session=session)
