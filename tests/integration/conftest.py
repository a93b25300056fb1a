"""Real agents in real worker processes, on Redis or Valkey and on RabbitMQ."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from postgres_server import Server, lone_server
from sqlalchemy import text
from support import Broker

from waooaw_celery import AgentApp
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.testing.embedded import end_all, valkey

Process: TypeAlias = subprocess.Popen[bytes]


@pytest.fixture(scope="session")
def valkey_broker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(redis_url, redis_url, tmp_path_factory.mktemp("valkey"))
    yield broker
    broker.clean()


@pytest.fixture(scope="session")
def rabbitmq_broker(amqp_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(amqp_url, redis_url, tmp_path_factory.mktemp("rabbitmq"))
    yield broker
    broker.clean()


@pytest.fixture(scope="session")
def ledger_broker(redis_url: str, postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Valkey, with the ledger in PostgreSQL."""
    broker = Broker(redis_url, redis_url, tmp_path_factory.mktemp("ledger"), postgres_url)
    app = broker.app()
    schema.upgrade(app.database)
    app.close()
    yield broker
    broker.clean()


@pytest.fixture(params=["ledger", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each broker in turn: Valkey with the ledger, RabbitMQ with receipts in Redis."""
    found: Broker = request.getfixturevalue(f"{request.param}_broker")
    return found


@pytest.fixture(scope="module", params=["valkey", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def ledgered_broker(
    request: pytest.FixtureRequest, ledger_broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """Each broker in turn, both with the ledger in PostgreSQL."""
    if request.param == "valkey":
        yield ledger_broker
        return
    url, redis_url = request.getfixturevalue("amqp_url"), ledger_broker.redis_url
    broker = Broker(url, redis_url, tmp_path_factory.mktemp("ledgered"), ledger_broker.database_url)
    yield broker
    broker.clean()


@pytest.fixture(scope="module")
def own_broker(ledger_broker: Broker) -> Iterator[Broker]:
    """A Valkey that only the tests of one file use: they close its connections, or limit its memory."""
    with valkey() as url:
        yield Broker(url, ledger_broker.redis_url, ledger_broker.folder, ledger_broker.database_url)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A PostgreSQL server that only the tests of one file use: they stop and freeze it."""
    with lone_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """The database of a ledger, with its schema."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    else:
        url = request.getfixturevalue("postgres_url")
    database = Database(database_url(url))
    schema.upgrade(database)
    yield database
    database.close()


@pytest.fixture
def count_effects(app: AgentApp) -> Callable[[str], int]:
    """Return a function that counts the effects with a label in the ledger's database."""
    with app.database.begin("make a table") as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS effects (label text, pid int)"))

    def count(label: str) -> int:
        with app.database.begin("count effects") as connection:
            found = connection.scalar(text("SELECT count(*) FROM effects WHERE label = :label"), {"label": label})
            return int(found or 0)

    return count


@pytest.fixture
def app(broker: Broker) -> Iterator[AgentApp]:
    """An application that speaks as ``tests``."""
    app = broker.app()
    yield app
    app.close()


@pytest.fixture
def start(broker: Broker, app: AgentApp) -> Iterator[Callable[..., str]]:
    """Start an agent that lives as long as the test, and return its name."""
    processes: list[Process] = []

    def _start(name: str | None = None, *options: str) -> str:
        name = name or broker.name()
        processes.append(broker.start(name, app, *options))
        return name

    yield _start
    end_all(processes)


@pytest.fixture(scope="session")
def lasting() -> Iterator[dict[tuple[str, str], tuple[str, Process]]]:
    """Agents that live as long as the session: name and process, by broker and role."""
    agents: dict[tuple[str, str], tuple[str, Process]] = {}
    yield agents
    end_all(process for _, process in agents.values())


@pytest.fixture
def probe(broker: Broker, app: AgentApp, lasting: dict[tuple[str, str], tuple[str, Process]]) -> str:
    """Name of an agent that runs for the whole session, one a broker."""
    return _lasting_agent("probe", broker, app, lasting)


@pytest.fixture
def other(broker: Broker, app: AgentApp, lasting: dict[tuple[str, str], tuple[str, Process]]) -> str:
    """Name of a second such agent."""
    return _lasting_agent("other", broker, app, lasting)


@pytest.fixture
def third(broker: Broker, app: AgentApp, lasting: dict[tuple[str, str], tuple[str, Process]]) -> str:
    """Name of a third one, which has not seen the large messages of other files."""
    return _lasting_agent("third", broker, app, lasting)


def _lasting_agent(
    role: str, broker: Broker, app: AgentApp, agents: dict[tuple[str, str], tuple[str, Process]]
) -> str:
    key = str(broker.folder), role
    if key not in agents:
        name = broker.name()
        agents[key] = name, broker.start(name, app)
    return agents[key][0]


@pytest.fixture
def ledgered(postgres_url: str, tmp_path: Path) -> Iterator[Broker]:
    """A Valkey and a ledger in PostgreSQL that only this test uses."""
    from fleet_metrics import alone  # which needs prometheus-client

    with alone(tmp_path, postgres_url) as broker:
        yield broker


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Broker]:
    """A Valkey that only this test uses, without a ledger."""
    from fleet_metrics import alone

    with alone(tmp_path) as broker:
        yield broker
