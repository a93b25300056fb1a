"""An exporter whose servers stop, hang and return: a scrape never waits, and says which source is down."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fleet_metrics import exporting, scraped
from postgres_server import Server
from proxy import proxied
from support import Broker, until

from waooaw_celery import AgentApp, Message, MessageBus
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.maintenance.fleet.exporter import Exporter
from waooaw_celery.testing.embedded import valkey

#: The sources that need the database, and those that do not.
OF_LEDGER, OF_BROKER = ("store", "messages", "ledger", "workflows"), ("broker", "dead_letters")
#: Seconds between two readings, and their deadline.
INTERVAL, DEADLINE = 0.3, 1.5


@pytest.fixture
def app(server: Server, tmp_path: Path) -> Iterator[AgentApp]:
    """An application with a ledger on a server that this test stops, and one waiting message."""
    with valkey() as url:
        broker = Broker(url, url, tmp_path, server.url)
        with closing(broker.app(waooaw_agents=["writer"])) as app:
            schema.upgrade(app.database)
            MessageBus(app).send(Message(from_agent="tests", to_agent="writer"))
            app.ledger.flush()
            yield app


def ups(exporter: Exporter) -> dict[str, float]:
    """Scrape, which must take no time, and return which sources are up."""
    began = time.monotonic()
    found = scraped(exporter)["waooaw_exporter_source_up"]
    assert time.monotonic() - began < 1.0, "a scrape has waited"
    return {labels[0]: value for labels, value in found.items()}


def are(exporter: Exporter, up: tuple[str, ...], down: tuple[str, ...] = ()) -> bool:
    """Return whether exactly these sources are up."""
    return ups(exporter) == dict.fromkeys(up, 1.0) | dict.fromkeys(down, 0.0)


@pytest.mark.parametrize("outage", ["frozen", "stopped"])
def test_a_ledger_that_does_not_answer(app: AgentApp, server: Server, outage: str) -> None:
    """Its sources are down, its samples are dropped after a while; queues of known agents are still read."""
    with exporting(app, INTERVAL, DEADLINE) as exporter:
        until(lambda: are(exporter, (*OF_LEDGER, *OF_BROKER)), "all sources")
        assert scraped(exporter)["waooaw_open_messages"][("sent",)] >= 1
        try:
            (server.freeze if outage == "frozen" else server.stop)()
            until(lambda: are(exporter, OF_BROKER, OF_LEDGER), "the outage")
            until(lambda: "waooaw_open_messages" not in scraped(exporter), "the end of the samples")
            assert exporter.routes()["/health/live"]().status == 200
            assert exporter.routes()["/health/ready"]().status == 200
            found = scraped(exporter)
            assert found["waooaw_queue_messages"]["writer", "normal"] == 1
            assert found["waooaw_exporter_source_age_seconds"][("ledger",)] > DEADLINE
        finally:
            server.thaw()
            server.start()
        until(lambda: are(exporter, (*OF_LEDGER, *OF_BROKER)), "the end of the outage", 60)
        assert scraped(exporter)["waooaw_open_messages"][("sent",)] >= 1


def test_an_exporter_that_starts_in_an_outage(app: AgentApp, server: Server) -> None:
    """It serves what it can, and reads the ledger when it answers."""
    try:
        server.stop()
        with exporting(app, INTERVAL, DEADLINE) as exporter:
            until(lambda: exporter.routes()["/health/ready"]().status == 200, "the first readings")
            until(lambda: are(exporter, OF_BROKER, OF_LEDGER), "the outage")
            assert scraped(exporter)["waooaw_queue_messages"]["writer", "normal"] == 1
            server.start()
            until(lambda: are(exporter, (*OF_LEDGER, *OF_BROKER)), "the end of the outage", 60)
    finally:
        server.start()


def test_a_broker_that_hangs(valkey_broker: Broker, tmp_path: Path) -> None:
    """Only a network that is silent is worse than a server that refuses: the sources are down in time."""
    with valkey() as store, proxied(valkey_broker.url) as proxy:
        broker = Broker(proxy.url, store, tmp_path)
        own = broker.app(waooaw_agents=["writer"], waooaw_redis_url=store)
        with closing(own), exporting(own, INTERVAL, DEADLINE) as exporter:
            until(lambda: are(exporter, ("store", *OF_BROKER)), "all sources")
            proxy.freeze(also_new=True)
            until(lambda: are(exporter, ("store",), OF_BROKER), "the outage")
            assert "waooaw_agent_workers" in scraped(exporter)
            proxy.thaw()
            until(lambda: are(exporter, ("store", *OF_BROKER)), "the end of the outage", 60)


def test_a_source_that_was_not_read_yet(app: AgentApp) -> None:
    """The exporter is not ready before each source was tried once, and not live when a thread has ended."""
    exporter = Exporter(app, 60)
    routes = exporter.routes()
    assert routes["/health/ready"]().status == 503
    assert b"store" in routes["/health/ready"]().body
    assert "waooaw_exporter_source_age_seconds" not in scraped(exporter)
    exporter.start()
    try:
        until(lambda: routes["/health/ready"]().status == 200, "the first readings")
        assert routes["/health/live"]().status == 200
    finally:
        exporter.stop()
    assert routes["/health/live"]().status == 503
