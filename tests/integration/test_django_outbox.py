"""The outbox in a transaction of Django's ORM: on PostgreSQL and on SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from support import Broker, lone_database, queue_length

from waooaw_celery import AgentApp, Message, MessageBus, MessageStatus
from waooaw_celery.agents.integrations.django import outbox, send_on_commit
from waooaw_celery.errors import ConfigurationError, InvalidMessage, UnknownMessage
from waooaw_celery.ledger.database import upgrade as schema

django = pytest.importorskip("django")
from django.conf import settings  # noqa: E402 - it may be missing
from django.db import connections, transaction  # noqa: E402 - it may be missing

if not settings.configured:
    memory = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    settings.configure(USE_TZ=True, LOGGING_CONFIG=None, DATABASES={"default": memory})
    django.setup()

ALIAS = "ledger"


@pytest.fixture(params=["postgresql", "sqlite"])
def app(request: pytest.FixtureRequest, redis_url: str, postgres_url: str, tmp_path: Path) -> Iterator[AgentApp]:
    """An application whose ledger is Django's database ``ledger``, which has a table ``orders``."""
    with lone_database(postgres_url) as url:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
        broker = Broker(redis_url, redis_url, tmp_path, url)
        with closing(broker.app(waooaw_reference_above=2_000)) as app:
            schema.upgrade(app.database)
            connections.databases[ALIAS] = connections.configure_settings({"default": {}, ALIAS: options(url)})[
                ALIAS
            ]
            with connections[ALIAS].cursor() as cursor:
                cursor.execute("CREATE TABLE orders (id text)")
            app.registry.declare("shipping", ["command"], "shipping@nowhere", lifetime=600.0)
            yield app
            connections[ALIAS].close()
            del connections[ALIAS], connections.databases[ALIAS]
            with app.connection_for_write() as connection, connection.channel() as channel:
                channel.queue_purge("agent.shipping")


def options(url: str) -> dict[str, Any]:
    """Return Django's settings of a database."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": parsed.database}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parsed.database,
        "USER": parsed.username,
        "PASSWORD": parsed.password or "",
        "HOST": parsed.host or parsed.query.get("host", ""),
        "PORT": str(parsed.port or ""),
    }


def message(payload: Any = None) -> Message:
    """Return a message to the agent ``shipping``."""
    return Message(from_agent="tests", to_agent="shipping", payload=payload or {"order": 7})


def orders() -> int:
    """Return how many orders are committed."""
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM orders")
        return int(cursor.fetchone()[0])


def place(app: AgentApp, sent: Message) -> None:
    """Insert an order and send a message, in the transaction that is open."""
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("INSERT INTO orders VALUES (%s)", [sent.message_id])
    MessageBus(app).send(sent, session=outbox(ALIAS))


@pytest.mark.parametrize("payload", [{"order": 7}, {"text": "é" * 30 + "".join(map(str, range(20_000)))}])
def test_a_message_is_sent_if_the_transaction_commits(app: AgentApp, payload: Any) -> None:
    """Order and message are committed together, also with a large payload; the message is published afterwards."""
    sent = message(payload)
    with transaction.atomic(using=ALIAS):
        place(app, sent)
        assert queue_length(app, "shipping") == 0
    assert (orders(), queue_length(app, "shipping")) == (1, 1)
    assert MessageBus(app).receipt(sent.message_id).status is MessageStatus.SENT
    assert app.ledger is not None


def test_nothing_is_sent_if_the_transaction_is_rolled_back(app: AgentApp) -> None:
    """Neither the order nor the message remains; the same for a savepoint of a transaction that commits."""
    first, second, kept = message(), message(), message()
    with suppress(ZeroDivisionError), transaction.atomic(using=ALIAS):
        place(app, first)
        raise ZeroDivisionError
    with transaction.atomic(using=ALIAS):
        with suppress(ZeroDivisionError), transaction.atomic(using=ALIAS):
            place(app, second)
            raise ZeroDivisionError
        place(app, kept)
    assert (orders(), queue_length(app, "shipping")) == (1, 1)
    for sent in (first, second):
        with pytest.raises(UnknownMessage):
            MessageBus(app).receipt(sent.message_id)


def test_a_message_is_sent_once(app: AgentApp) -> None:
    """The second send of one message is refused, and so is another database, or one without a transaction."""
    sent = message()
    with transaction.atomic(using=ALIAS):
        place(app, sent)
    with pytest.raises(InvalidMessage, match="was sent already"), transaction.atomic(using=ALIAS):
        place(app, sent)
    with pytest.raises(ConfigurationError, match=r"no transaction is open.*atomic\(\)"):
        MessageBus(app).send(message(), session=connections[ALIAS])
    with (
        pytest.raises(ConfigurationError, match="Django's database 'default', which is not the ledger's"),
        transaction.atomic(using="default"),
    ):
        MessageBus(app).send(message(), session=connections["default"])
    assert queue_length(app, "shipping") == 1


def test_without_the_outbox_a_message_is_sent_after_the_commit(
    app: AgentApp, caplog: pytest.LogCaptureFixture
) -> None:
    """A rollback sends nothing, and a send that fails changes nothing of the committed transaction."""
    bus = MessageBus(app)
    for fails in (True, False):
        with suppress(ZeroDivisionError), transaction.atomic(using=ALIAS):
            send_on_commit(lambda: bus.send(message()), ALIAS)
            assert queue_length(app, "shipping") == 0
            if fails:
                raise ZeroDivisionError
    assert queue_length(app, "shipping") == 1
    with transaction.atomic(using=ALIAS):
        send_on_commit(lambda: bus.send(Message(from_agent="tests", to_agent="nobody")), ALIAS)
    assert "could not be sent after the commit: agent 'nobody' is not known" in caplog.text
