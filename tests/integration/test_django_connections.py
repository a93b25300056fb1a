"""``async def`` handlers that use Django's ORM: their connections are closed, as for plain tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import psycopg2  # type: ignore[import-untyped]
import pytest
from sqlalchemy.engine import make_url
from support import Broker, lone_database, settled, until

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus, RemoteError
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.testing.embedded import end

TEXTS = ["one", "two", "three", "four"]


class Project(NamedTuple):
    """An agent of a Django project that runs in a worker, and the project's database."""

    app: AgentApp
    name: str
    database: Any

    def ask(self, method: str, **params: Any) -> Any:
        """Send the agent a request, and return the answer."""
        return Requests(self.app).request(self.name, method, params, timeout=40)

    def write_note(self) -> MessageStatus:
        """Send the agent a message, which its coroutine stores, and return the final status."""
        message = Message(from_agent="tests", to_agent=self.name, payload="five")
        return settled(self.app, MessageBus(self.app).send(message).message_id)

    def connections(self, command: str = "count(*)") -> int:
        """Count the other connections to the project's database, or apply an SQL function to each."""
        with self.database.cursor() as cursor:
            cursor.execute(
                f"SELECT {command} FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            rows = cursor.fetchall()
        return int(rows[0][0]) if command == "count(*)" else len(rows)

    def close_connections(self) -> int:
        """Have PostgreSQL close all connections of the worker, like a restart; return how many."""
        return self.connections("pg_terminate_backend(pid)")


@pytest.fixture(scope="module", params=["prefork", "solo", "threads"])
def project(request: pytest.FixtureRequest, ledger_broker: Broker, postgres_url: str) -> Iterator[Project]:
    """A worker in each kind of pool. Three handlers run at a time, except in the solo pool."""
    with lone_database(postgres_url) as url:
        database_url = make_url(url)
        options = {
            "NAME": database_url.database,
            "USER": database_url.username,
            "PASSWORD": database_url.password or "",
            "HOST": database_url.host or database_url.query.get("host", ""),
            "PORT": str(database_url.port or ""),
        }
        dsn = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
        database = psycopg2.connect(dsn)
        database.autocommit = True
        with database.cursor() as cursor:
            cursor.execute("CREATE TABLE notes_note (id serial PRIMARY KEY, text text NOT NULL)")
            cursor.execute("INSERT INTO notes_note (text) SELECT unnest(%s)", (TEXTS,))
        app, name = ledger_broker.app(), ledger_broker.name()
        pool = request.param
        process = ledger_broker.start(
            name,
            app,
            *("-P", pool, *(() if pool == "solo" else ("-c", "3"))),
            module="django_probe",
            env={"DJANGO_SETTINGS_MODULE": "django_settings", "DJANGO_DATABASE": json.dumps(options)},
        )
        yield Project(app, name, database)
        end(process)
        app.close()
        database.close()


def test_closed_connections_do_not_break_later_handlers(project: Project) -> None:
    """After PostgreSQL closed all connections, each kind of handler works at once, three times."""
    for _ in range(3):
        assert project.write_note() is MessageStatus.HANDLED
        count = project.ask("awaited")
        assert project.ask("plain") == count
        assert project.ask("parts")[:4] == TEXTS
        project.close_connections()


def test_connections_are_closed_after_each_handler(project: Project) -> None:
    """It holds for handlers that return or raise. Within a handler, the connection stays the same."""
    first, second = project.ask("backends")
    assert first == second
    with pytest.raises(RemoteError, match="no such note"):
        project.ask("failing")
    until(lambda: project.connections() == 0, "the end of all connections")


def test_a_handler_does_not_close_connections_of_others(project: Project) -> None:
    """A handler that streams rows continues while others start and end."""
    with ThreadPoolExecutor(1) as threads:
        parts = threads.submit(project.ask, "parts", seconds=0.3)
        counted = [project.ask("awaited") for _ in range(4)]
        assert parts.result(60)[:4] == TEXTS
    assert all(count >= len(TEXTS) for count in counted)


@pytest.mark.slow
def test_a_query_that_outlives_its_handler_blocks_no_other(project: Project) -> None:
    """The handler ends at its time limit, the next one is handled, and the connection is closed later."""
    with pytest.raises(RemoteError, match="TimeLimitExceeded"):
        project.ask("slow")
    assert project.ask("awaited") >= len(TEXTS)
    until(lambda: project.connections() == 0, "the end of all connections")


def test_a_handler_is_sent_when_djangos_transaction_is_committed(project: Project) -> None:
    """``delay_on_commit`` and ``apply_async_on_commit`` send after the commit, and nothing after a rollback."""

    def notes() -> int:
        with project.database.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM notes_note WHERE text = 'on commit'")
            return int(cursor.fetchone()[0])

    before = notes()
    project.ask("note_on_commit", fail=True)
    project.ask("note_on_commit", fail=False)
    until(lambda: notes() == before + 2, "the two messages")
    assert project.write_note() is MessageStatus.HANDLED  # it comes after whatever was sent before
    assert notes() == before + 2
