"""The ledger behind PgBouncer, which gives a connection of the server to each transaction."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import psycopg2  # type: ignore[import-untyped]
import pytest
from pooler import pooled
from sqlalchemy import insert
from support import Broker, lone_database, settled

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.database.models import AgentRow
from waooaw_celery.ledger.database.timeouts import DEADLINE_SECONDS
from waooaw_celery.ledger.write.pipeline import PipelinedConnection
from waooaw_celery.testing.embedded import end


@pytest.fixture
def direct_url(postgres_url: str) -> Iterator[str]:
    """The URL of a database of its own."""
    with lone_database(postgres_url) as url:
        yield url


@pytest.fixture(params=["direct", "pooled"])
def url(request: pytest.FixtureRequest, direct_url: str) -> Iterator[str]:
    """The URL of the database, and one through PgBouncer with a single connection to the server."""
    if request.param == "direct":
        yield direct_url
        return
    with pooled(direct_url, "default_pool_size = 1") as through:
        yield through


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(database_url(url))
    yield database
    database.close()


NOW = datetime.now(UTC)
LIMITS = [f"{DEADLINE_SECONDS}s", f"{DEADLINE_SECONDS}s", "UTC"]
SHOW = "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('timezone')"


def test_limits_hold_in_each_transaction(database: Database) -> None:
    """Also when a transaction begins with another timeout, or with many rows at once."""
    with database.begin("show the limits") as connection:
        assert list(connection.exec_driver_sql(SHOW).one()) == LIMITS
    with database.begin("show the limits", 60) as connection:
        assert list(connection.exec_driver_sql(SHOW).one()) == ["1min", *LIMITS[1:]]
    with database.handlers.connect() as connection, connection.begin():
        assert list(connection.exec_driver_sql(SHOW).one()) == LIMITS
    schema.upgrade(database)
    with database.begin("write many rows") as connection:
        rows = [
            {"name": f"a{n}", "handlers": [], "capabilities": [], "declared_at": NOW, "last_seen": NOW}
            for n in (1, 2)
        ]
        connection.execute(insert(AgentRow), rows)
        assert list(connection.exec_driver_sql(SHOW).one()) == LIMITS
    pipeline = PipelinedConnection(database)
    with closing(pipeline):
        pipeline.send("show the limits", SHOW, {})
        assert [list(row) for row in pipeline.receive("show the limits")] == [LIMITS]


def test_limits_leave_nothing_behind(database: Database, direct_url: str) -> None:
    """Another client of the pooler gets the connection as the server made it."""
    with database.begin("use the connection") as connection:
        connection.exec_driver_sql("SELECT 1")
    url = database.url.render_as_string(hide_password=False).replace("+psycopg2", "")
    with closing(psycopg2.connect(url)) as other, other.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("0",)


@pytest.fixture
def app(valkey_broker: Broker, url: str, tmp_path: Path) -> Iterator[AgentApp]:
    """An application whose ledger is behind the pooler."""
    broker = Broker(valkey_broker.url, valkey_broker.redis_url, tmp_path, url)
    with closing(broker.app(waooaw_agents=["nobody"])) as app:
        schema.upgrade(app.database)
        yield app


@pytest.mark.slow
def test_send_to_a_locked_table_is_refused_in_time(
    app: AgentApp, direct_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The server itself ends the statement after the limit; the client's deadline is a second later."""
    bus = MessageBus(app)
    bus.send(Message(from_agent="tests", to_agent="nobody", payload={}))  # connects
    with closing(psycopg2.connect(direct_url.replace("+psycopg2", ""))) as holder, holder.cursor() as cursor:
        cursor.execute("LOCK TABLE waooaw_messages IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        with pytest.raises(AuditUnavailable):
            bus.send(Message(from_agent="tests", to_agent="nobody", payload={}))
        assert time.monotonic() - began < DEADLINE_SECONDS + 0.7
        holder.rollback()
    assert "statement timeout" in caplog.text  # and not the client's own deadline


@pytest.mark.slow
def test_agents_work_behind_the_pooler(valkey_broker: Broker, direct_url: str, tmp_path: Path) -> None:
    """Sends, receipts, requests, ``once=True`` and queries; the server never gets a setting that outlives it."""
    with pooled(direct_url, "default_pool_size = 4") as url:
        broker = Broker(valkey_broker.url, valkey_broker.redis_url, tmp_path, url)
        with closing(broker.app()) as app:
            schema.upgrade(app.database)
            name = broker.name()
            worker = broker.start(name, app, module="day_probe")
            try:
                bus, requests = MessageBus(app), RequestResponseHandler(app)
                for _ in range(3):
                    sent = bus.send(Message(from_agent="tests", to_agent=name, payload={}))
                    assert settled(app, sent.message_id) is MessageStatus.HANDLED
                assert requests.request(name, "work", timeout=20) == 1
                assert app.ledger.reconcile(recovered=True) == []
            finally:
                end(worker)
