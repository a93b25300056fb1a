"""The metrics of the fleet: agents, several applications, few permissions, and the number of series."""

from __future__ import annotations

import re
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from fleet_metrics import exporting, scraped, send
from support import Broker, lone_database, until

from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import database_url
from waooaw_celery.maintenance.fleet import metrics
from waooaw_celery.maintenance.fleet.agents import MAX_CLOCKS, AgentReader
from waooaw_celery.maintenance.fleet.known_agents import KnownAgents
from waooaw_celery.maintenance.fleet.queues import MAX_SENDERS
from waooaw_celery.testing.embedded import free_port, valkey


@pytest.mark.parametrize("kind", ["plain", "ledgered"])
def test_agents_workers_health_clocks_and_breakers(kind: str, request: pytest.FixtureRequest) -> None:
    """As the store has them, with a ledger and without one."""
    broker: Broker = request.getfixturevalue(kind)
    with closing(broker.app(waooaw_agents=["idle"])) as app:
        now = datetime.now(UTC).isoformat()
        facts = {"started_at": now, "ttl": 15.0, "heartbeat": 5.0, "health": "healthy"}
        for node, ahead in (("w1@h", 0.5), ("w2@h", -7.5)):
            report = {"discovery": facts, "clock": {"ahead": ahead, "error": 0.0, "reference": "Redis"}}
            app.registry.declare("writer", ["command"], node, 60.0, report=report)
        app.registry.declare("stuck", ["command"], "w3@h", 60.0, report={"stalled": "no progress", "clock": "?"})
        app.breakers.open_by_hand("writer", by="ada", reason="Ada's test")
        app.breakers.failed("idle")
        agents = KnownAgents()
        reader = AgentReader(app, agents)
        samples = reader.read()
        reader.close()
    assert agents.names() == ("idle", "stuck", "writer")
    assert samples.values[metrics.AGENT_WORKERS] == {("writer",): 2, ("stuck",): 1, ("idle",): 0}
    assert set(samples.values[metrics.AGENT_HEALTH]) == {
        ("writer", "healthy"),
        ("stuck", "unhealthy"),
        ("idle", "unknown"),
    }
    assert samples.values[metrics.CLOCK_AHEAD] == {("w1@h",): 0.5, ("w2@h",): -7.5}
    assert samples.values[metrics.BREAKER_OPEN] == {("writer",): 1, ("idle",): 0}


def test_two_applications_of_one_redis_are_kept_apart(plain: Broker) -> None:
    """Each exporter has only the agents, queues and dead letters of its key prefix."""
    prefix = {"broker_transport_options": {"global_keyprefix": "lab:"}}
    options = prefix | {"result_backend_transport_options": {"global_keyprefix": "lab:"}}
    with closing(plain.app()) as ours, closing(plain.app(**options)) as theirs:
        ours.registry.declare("ours", ["command"], "w@h", 60.0)
        theirs.registry.declare("theirs", ["command"], "v@h", 60.0)
        send(ours, "ours", 2)
        send(theirs, "theirs", 3)
        theirs.dead_letters.add("agent.theirs", "ValueError: x", b"{}")
        theirs.breakers.open_by_hand("theirs", by="ada")
        for app, own, number, dead in ((ours, "ours", 2, 0), (theirs, "theirs", 3, 1)):
            with exporting(app) as exporter:
                until(lambda: all(state.up for state in exporter.states().values()), "all sources")
                found = scraped(exporter)
            assert set(found["waooaw_agent_workers"]) == {(own,)}
            assert {agent for agent, _ in found["waooaw_queue_messages"]} == {own, "(system)"}
            assert found["waooaw_queue_messages"][own, "normal"] == number
            assert found["waooaw_dead_letters_stored"][()] == dead
            assert set(found.get("waooaw_breaker_open", {})) == ({("theirs",)} if dead else set())


def test_a_user_who_may_only_read_is_enough(postgres_url: str, tmp_path: Path) -> None:
    """In PostgreSQL, and in Redis with the permissions of `docs/run/shared-redis.md`."""
    page = (Path(__file__).parents[2] / "docs" / "run" / "shared-redis.md").read_text()
    [rule] = re.findall(r"^ACL SETUSER lab-exporter (.*)$", page, flags=re.MULTILINE)
    port, role = free_port(), f"reader_{uuid4().hex[:8]}"
    with valkey(port=port) as url, lone_database(postgres_url) as database:
        options = {"broker_transport_options": {"global_keyprefix": "lab:"}, "waooaw_agents": ["writer"]}
        broker = Broker(url, url, tmp_path, database)
        with closing(broker.app(**options)) as app:
            schema.upgrade(app.database)
            send(app, "writer", 2)
            app.dead_letters.add("agent.writer", "ValueError: x", b"{}")
            app.ledger.flush()
            with app.connection_for_write() as connection, connection.channel() as channel:
                channel.client.execute_command("ACL", "SETUSER", "lab-exporter", *rule.split())
            with app.database.begin("make a user") as connection:
                connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD 'SECRET'")
                connection.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
            try:
                reading = url.replace("redis://", "redis://lab-exporter:SECRET@")
                user = database_url(database).set(username=role, password="SECRET")  # noqa: S106
                own = Broker(reading, reading, tmp_path, user.render_as_string(hide_password=False))
                with closing(own.app(**options)) as other, exporting(other) as exporter:
                    until(lambda: all(state.up for state in exporter.states().values()), "all sources")
                    found = scraped(exporter)
            finally:
                with app.database.begin("drop the user") as connection:
                    connection.exec_driver_sql(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert found["waooaw_queue_messages"]["writer", "normal"] == 2
    assert found["waooaw_dead_letters_stored"][()] == 1
    assert found["waooaw_open_messages"][("sent",)] == 2


def test_the_number_of_series_is_bounded(plain: Broker, postgres_url: str, tmp_path: Path) -> None:
    """With 500 agents, each with messages of 500 senders, and 200 workers with odd names: below 8000 series."""
    agents = [f"agent-{n}" for n in range(500)]
    with lone_database(postgres_url) as database:
        broker = Broker(plain.url, plain.redis_url, tmp_path, database)
        with closing(broker.app(waooaw_agents=agents)) as app:
            schema.upgrade(app.database)
            with app.database.begin("fill the open messages", 60) as connection:
                connection.exec_driver_sql(
                    "INSERT INTO waooaw_open_messages (message_id, retain_until, sent_at, from_agent, to_agent) "
                    "SELECT gen_random_uuid(), now() + interval '90 days', now(), 'sender-' || s, 'agent-' || a "
                    "FROM generate_series(1, 500) s, generate_series(0, 499) a"
                )
            for n in range(200):
                odd = f'w"{n}\n\\@{{host}}\x1b'
                app.registry.declare("agent-0", ["command"], odd, 60.0, report={"clock": {"ahead": n}})
            for n in range(600):
                app.dead_letters.add(f"agent.agent-{n % 500}", f"Error{n % 7}: {n}", b"{}")
            with exporting(app, interval=5, deadline=60) as exporter:
                until(lambda: all(state.up for state in exporter.states().values()), "all sources", 60)
                found = scraped(exporter)
    assert found["waooaw_agent_workers"][("agent-0",)] == 200
    assert len(found["waooaw_clock_ahead_seconds"]) == MAX_CLOCKS
    assert len(found["waooaw_queue_sender_messages"]) <= MAX_SENDERS + 500
    assert sum(found["waooaw_queue_sender_messages"].values()) == 250_000
    assert found["waooaw_open_messages"][("not_read",)] == 230_000
    assert sum(map(len, found.values())) < 8000
