"""The metrics of the fleet: what each source reads, on real servers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from fleet_metrics import exporting, of, scraped
from support import Broker, lone_database, note, until
from test_message_groups import KEYED, Probe

from waooaw_celery import AgentApp, Message, MessageBus, Priority
from waooaw_celery.embedded import end_all, free_port, valkey
from waooaw_celery.ledger.database import partitions
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import database_url
from waooaw_celery.ledger.retention.removal import Removal, record_removal
from waooaw_celery.ledger.workflow_models import WorkflowRow
from waooaw_celery.maintenance.fleet import metrics
from waooaw_celery.maintenance.fleet.agents import MAX_CLOCKS, AgentReader
from waooaw_celery.maintenance.fleet.dead_letters import MAX_READ, NOT_READ, DeadLetterReader
from waooaw_celery.maintenance.fleet.known_agents import KnownAgents
from waooaw_celery.maintenance.fleet.ledger import LedgerReader
from waooaw_celery.maintenance.fleet.messages import MessageReader
from waooaw_celery.maintenance.fleet.queues import MAX_SENDERS, UNKNOWN, QueueReader
from waooaw_celery.maintenance.fleet.samples import INVALID, OTHER
from waooaw_celery.maintenance.fleet.workflows import MAX_GROUPS, WorkflowReader
from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.messages.receipt import MessageEvent


@pytest.fixture
def ledgered(postgres_url: str, tmp_path: Path) -> Iterator[Broker]:
    """A Valkey and a ledger in PostgreSQL that only this test uses."""
    with valkey() as url, lone_database(postgres_url) as database:
        broker = Broker(url, url, tmp_path, database)
        with closing(broker.app()) as app:
            schema.upgrade(app.database)
        yield broker


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Broker]:
    """A Valkey that only this test uses, without a ledger."""
    with valkey() as url:
        yield Broker(url, url, tmp_path)


def send(app: AgentApp, to: str, count: int = 1, **fields: object) -> list[str]:
    """Send messages to an agent, and return their ids."""
    message = {"from_agent": "tests", "to_agent": to} | fields
    return [MessageBus(app).send(Message(**message)).message_id for _ in range(count)]  # type: ignore[arg-type]


def record(app: AgentApp, **fields: object) -> Message:
    """Record a message in the ledger as the publisher does, without sending it."""
    message = Message(**({"from_agent": "tests", "to_agent": "writer"} | fields))  # type: ignore[arg-type]
    app.ledger.begin_recording([(message, "command")])()
    return message


def test_waiting_messages_by_agent_and_priority(ledgered: Broker) -> None:
    """With the age of the oldest of each priority, and who sent them."""
    with closing(ledgered.app(waooaw_agents=["writer", "idle"])) as app:
        send(app, "writer", 3, priority=Priority.HIGH)
        send(app, "writer", 2, priority=Priority.LOW, from_agent="planner")
        queues = QueueReader(app, KnownAgents(["writer", "idle"])).read()
        app.ledger.flush()
        messages = MessageReader(app).read()
    assert of(queues, metrics.QUEUE_MESSAGES, "writer", "high") == 3
    assert of(queues, metrics.QUEUE_MESSAGES, "writer", "low") == 2
    assert of(queues, metrics.QUEUE_MESSAGES, "writer", "urgent") == 0
    assert of(queues, metrics.QUEUE_MESSAGES, "idle", "normal") == 0
    assert of(queues, metrics.QUEUE_MESSAGES, "(system)", "normal") == 0
    ages = queues.values[metrics.QUEUE_OLDEST]
    assert set(ages) == {("writer", "high"), ("writer", "low")}
    assert all(0 < age < 30 for age in ages.values())
    assert metrics.QUEUE_SENDERS not in queues.values, "the ledger tells it"
    assert messages.values[metrics.QUEUE_SENDERS] == {("writer", "tests"): 3, ("writer", "planner"): 2}


def test_the_age_is_that_of_the_oldest_message(plain: Broker) -> None:
    """Newer ones of the same list do not make it younger."""
    with closing(plain.app(waooaw_agents=["writer"])) as app:
        now = app.reference_clock.now()
        send(app, "writer", sent_at=now - timedelta(minutes=3))
        send(app, "writer", 2)
        samples = QueueReader(app, KnownAgents(["writer"])).read()
    age = of(samples, metrics.QUEUE_OLDEST, "writer", "normal")
    assert age is not None
    assert 180 <= age < 210


def test_without_a_ledger_the_queue_tells_the_senders(plain: Broker) -> None:
    """Anything may stand there: what is no name of an agent is no label, and what cannot be read is not dated."""
    with closing(plain.app(waooaw_agents=["writer"])) as app:
        send(app, "writer", 150)
        send(app, "writer", 2, from_agent="planner", priority=Priority.URGENT)
        with app.connection_for_write() as connection, connection.channel() as channel:
            for item in (
                b"{",
                b"[]",
                json.dumps({"headers": {ENVELOPE_HEADER: {"from": "Ada Lovelace"}}}).encode(),
            ):
                channel.client.rpush("agent.writer", item)
        samples = QueueReader(app, KnownAgents(["writer"])).read()
    senders = samples.values[metrics.QUEUE_SENDERS]
    assert senders["writer", "planner"] == 2
    assert senders["writer", INVALID] == 3
    assert of(samples, metrics.QUEUE_MESSAGES, "writer", "normal") == 150
    assert senders["writer", "tests"] == 100, "about the next hundred of a list are read"


def test_large_messages_are_not_read_for_their_senders(plain: Broker) -> None:
    """The exporter must not move megabytes in each interval."""
    with closing(plain.app(waooaw_agents=["writer"], task_compression="none")) as app:
        send(app, "writer", payload="x" * 100_000)
        samples = QueueReader(app, KnownAgents(["writer"])).read()
    assert of(samples, metrics.QUEUE_OLDEST, "writer", "normal") is not None
    assert not samples.values.get(metrics.QUEUE_SENDERS)


def test_messages_that_wait_for_their_key_are_counted(plain: Broker, tmp_path: Path) -> None:
    """With their priority and age, although they wait in a list of their key."""
    probe = Probe(plain, tmp_path)
    try:
        probe.start(options=KEYED)
        probe.send([probe.message(key="k", n=0, seconds=60)])
        until(lambda: probe.calls("begin"), "the first message")
        probe.send([probe.message(key="k", n=n) for n in range(1, 4)])
        reader = QueueReader(probe.app, KnownAgents([probe.name]))
        until(lambda: of(reader.read(), metrics.QUEUE_BUSY_KEYS, probe.name) == 1, "the key")
        samples = reader.read()
        assert of(samples, metrics.QUEUE_MESSAGES, probe.name, "normal") == 3
        assert of(samples, metrics.QUEUE_OLDEST, probe.name, "normal") is not None
        assert of(samples, metrics.QUEUE_SENDERS, probe.name, "tests") == 3
    finally:
        end_all(probe.processes)
        probe.app.close()


@pytest.mark.rabbitmq
def test_on_rabbitmq_the_priority_is_unknown(rabbitmq_broker: Broker, postgres_url: str) -> None:
    """The ledger tells the age of the oldest message by priority; nothing is taken out of a queue."""
    with lone_database(postgres_url) as database:
        broker = Broker(rabbitmq_broker.url, rabbitmq_broker.redis_url, rabbitmq_broker.folder, database)
        name = rabbitmq_broker.name()
        with closing(broker.app(waooaw_agents=[name])) as app:
            schema.upgrade(app.database)
            send(app, name, 3, priority=Priority.HIGH)
            until(
                lambda: (
                    of(QueueReader(app, KnownAgents([name])).read(), metrics.QUEUE_MESSAGES, name, UNKNOWN) == 3
                )
            )
            queues = QueueReader(app, KnownAgents([name])).read()
            app.ledger.flush()
            messages = MessageReader(app).read()
            dead = DeadLetterReader(app).read()
    assert metrics.QUEUE_OLDEST not in queues.values
    assert metrics.QUEUE_BUSY_KEYS not in queues.values
    age = of(messages, metrics.QUEUE_OLDEST, name, "high")
    assert age is not None
    assert 0 < age < 30
    total = of(dead, metrics.DEAD_LETTERS_STORED)
    assert total == sum(dead.values.get(metrics.DEAD_LETTERS, {(OTHER, NOT_READ): 0}).values())


def test_open_and_recent_messages(ledgered: Broker) -> None:
    """By status; what ended long ago, was only logged, or is a record of an event does not count."""
    with closing(ledgered.app(waooaw_agents=["writer"])) as app:
        ledger, now = app.ledger, app.reference_clock.now()
        record(app)
        for event in (MessageEvent.SENT, MessageEvent.DELIVERED):
            note(ledger, record(app), event)
        note(ledger, record(app, sent_at=now - timedelta(days=9)), MessageEvent.LOGGED)
        oldest = record(app, sent_at=now - timedelta(hours=2), ttl_seconds=90_000)
        note(ledger, oldest, MessageEvent.SENT)
        ends = {MessageEvent.HANDLED: 4, MessageEvent.EXPIRED: 3, MessageEvent.DEAD: 2, MessageEvent.CANCELLED: 1}
        for event, count in ends.items():
            for _ in range(count):
                note(ledger, record(app), event)
        note(ledger, record(app, sent_at=now - timedelta(hours=3)), MessageEvent.EXPIRED)  # it ends now
        note(ledger, record(app), MessageEvent.EXPIRED, at=now - timedelta(minutes=6))  # it ended before
        note(ledger, record(app), MessageEvent.RECOVERED, error="not in the broker")
        note(ledger, record(app), MessageEvent.FAILED, error="lost: it was recovered 5 times, and is not there")
        note(ledger, record(app), MessageEvent.FAILED, error="ValueError: lost: no")
        ledger.refused("planner", "10/second", 7)
        ledger.flush()
        samples = MessageReader(app).read()
    open_ = {labels[0]: value for labels, value in samples.values[metrics.OPEN_MESSAGES].items()}
    assert open_ == {"pending": 2, "sent": 2, "delivered": 1, "not_read": 0}
    age = of(samples, metrics.OLDEST_OPEN)
    assert age is not None
    assert 7200 <= age < 7300
    recent = {labels[0]: value for labels, value in samples.values[metrics.RECENT_MESSAGES].items()}
    assert recent == {"handled": 4, "expired": 4, "dead": 2, "cancelled": 1, "failed": 2}
    assert of(samples, metrics.RECOVERED_MESSAGES) == 1
    assert of(samples, metrics.LOST_MESSAGES) == 1
    assert of(samples, metrics.REFUSALS, "planner") == 7


def test_recent_messages_are_read_along_their_index(ledgered: Broker) -> None:
    """PostgreSQL never reads whole partitions for them, whatever it knows about the tables."""
    with closing(ledgered.app(waooaw_agents=["writer"])) as app:
        for _ in range(50):
            note(app.ledger, record(app), MessageEvent.HANDLED)
        app.ledger.flush()
        with app.database.begin("explain a query") as connection:
            connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            rows = connection.exec_driver_sql(
                "EXPLAIN SELECT count(*) FROM (SELECT at, error FROM waooaw_message_events "
                "WHERE event = 'handled' AND sent_at >= now() - interval '1 hour' "
                "ORDER BY sent_at DESC, message_id DESC LIMIT 100000) AS newest "
                "WHERE at >= now() - interval '5 minutes'"
            )
            plan = "\n".join(rows.scalars())
    assert "Index Scan Backward" in plan
    assert "Seq Scan" not in plan
    assert "Sort" not in plan.replace("Sort Key", "")


def test_dead_letters_by_agent_and_reason(plain: Broker) -> None:
    """A retry, a discard and a new one are seen; of too many, the rest is not read."""
    with closing(plain.app(waooaw_agents=["writer"])) as app:
        reader = DeadLetterReader(app)
        assert of(reader.read(), metrics.DEAD_LETTERS_STORED) == 0
        app.dead_letters.add("agent.writer", "ValueError: for Ada", b"{}", b"{}")
        app.dead_letters.add("agent.reader", "its header 'id' is not text", b"\xff")
        app.dead_letters.add("agent.Ada Lovelace", "it is not a task", b"x" * 1000)
        app.dead_letters.add("elsewhere", "", b"")
        samples = reader.read()
        assert samples.values[metrics.DEAD_LETTERS] == {
            ("writer", "handler_error"): 2,
            ("reader", "unreadable"): 1,
            (INVALID, "unreadable"): 1,
            (OTHER, "other"): 1,
        }
        [one, _] = app.dead_letters.list(agent="writer")
        app.dead_letters.discard([one], reason="test")
        samples = reader.read()
        assert of(samples, metrics.DEAD_LETTERS, "writer", "handler_error") == 1
        assert of(samples, metrics.DEAD_LETTERS_STORED) == 4
        app.dead_letters.add("agent.writer", "ValueError: x", *[b"{}"] * (MAX_READ + 20))
        samples = reader.read()
        assert of(samples, metrics.DEAD_LETTERS_STORED) == MAX_READ + 24
        read = sum(number for (_, why), number in samples.values[metrics.DEAD_LETTERS].items() if why != NOT_READ)
        assert read == MAX_READ
        assert of(samples, metrics.DEAD_LETTERS, OTHER, NOT_READ) == 24


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


def workflow(name: str, status: str, created_at: datetime) -> dict[str, object]:
    """Return the row of a workflow."""
    return {
        "workflow_id": str(uuid4()),
        "name": name,
        "agent": "shop",
        "status": status,
        "priority": 1,
        "run": 1,
        "input_digest": "",
        "conversation_id": "c",
        "created_at": created_at,
        "retention": "90 days",
        "fence": 0,
        "takeovers": 0,
        "last_change": 0,
        "inputs": 0,
    }


def test_workflows_that_have_not_ended(ledgered: Broker) -> None:
    """By function and status; of too many functions, the stuck ones keep their names."""
    with closing(ledgered.app()) as app:
        now = app.reference_clock.now()
        rows = [
            workflow("shop.order", "stuck", now - timedelta(hours=1)),
            workflow("shop.order", "completed", now),
        ]
        rows += [workflow(f"shop.f{n}", "waiting", now) for n in range(MAX_GROUPS + 30)]
        rows += [workflow("shop.f0", "waiting", now - timedelta(minutes=5))]
        with app.database.begin("write workflows") as connection:
            connection.execute(WorkflowRow.__table__.insert(), rows)  # type: ignore[attr-defined]
        samples = WorkflowReader(app).read()
    found = samples.values[metrics.WORKFLOWS]
    assert found["shop.order", "stuck"] == 1
    assert found["shop.f0", "waiting"] == 2
    assert sum(found.values()) == len(rows) - 1
    assert len(found) == MAX_GROUPS + 1
    assert found[OTHER, "waiting"] == 31
    oldest = {labels[0]: value for labels, value in samples.values[metrics.WORKFLOW_OLDEST].items()}
    assert set(oldest) == {"pending", "running", "waiting", "paused", "stuck", "compensating"}
    assert 3600 <= oldest["stuck"] < 3700
    assert 300 <= oldest["waiting"] < 400
    assert oldest["running"] == 0


def test_the_state_of_the_ledger(ledgered: Broker) -> None:
    """Its size, its partitions, its last purge and its lag."""
    with closing(ledgered.app(waooaw_agents=["writer"])) as app:
        empty = LedgerReader(app).read()
        now = app.reference_clock.now()
        record(app, sent_at=now - timedelta(days=3), ttl_seconds=None)
        fresh = LedgerReader(app).read()
        with app.database.begin("make an old partition") as connection:
            partitions.make_ahead(connection, now - timedelta(days=100), months=0)
        record_removal(app.database, Removal(rule="erasure: of a message"), now)
        record_removal(app.database, Removal(rule="purge: retained until then"), now - timedelta(hours=5))
        purged = LedgerReader(app).read()
    assert of(empty, metrics.LEDGER_PURGE_AGE) == 0
    assert (of(empty, metrics.LEDGER_SIZE) or 0) > 100_000
    assert of(empty, metrics.LEDGER_PARTITIONS) == partitions.MONTHS_AHEAD + 1
    assert (of(empty, metrics.LEDGER_DAYS_AHEAD) or 0) > 366
    assert of(empty, metrics.LEDGER_OVERDUE_PARTITIONS) == 0
    assert 3 * 86_400 <= (of(fresh, metrics.LEDGER_PURGE_AGE) or 0) < 3 * 86_400 + 60
    assert (of(fresh, metrics.LEDGER_LAG) or 0) >= 3 * 86_400, "its row was written now"
    assert of(purged, metrics.LEDGER_OVERDUE_PARTITIONS) == 1
    assert 5 * 3600 <= (of(purged, metrics.LEDGER_PURGE_AGE) or 0) < 5 * 3600 + 60


def test_a_ledger_in_sqlite_has_metrics_too(plain: Broker, tmp_path: Path) -> None:
    """All but those of partitions."""
    broker = Broker(plain.url, plain.redis_url, tmp_path, f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    with closing(broker.app(waooaw_agents=["writer"])) as app:
        schema.upgrade(app.database)
        send(app, "writer", 2)
        note(app.ledger, record(app), MessageEvent.HANDLED)
        app.ledger.flush()
        with exporting(app) as exporter:
            until(lambda: all(state.up for state in exporter.states().values()), "all sources")
            found = scraped(exporter)
    assert found["waooaw_open_messages"][("sent",)] == 2
    assert found["waooaw_recent_messages"][("handled",)] == 1
    assert found["waooaw_ledger_size_bytes"][()] > 10_000
    assert "waooaw_ledger_partitions" not in found


def test_a_user_who_may_only_read_is_enough(postgres_url: str, tmp_path: Path) -> None:
    """In PostgreSQL, and in Redis with the permissions of `docs/operations.md`."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
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
