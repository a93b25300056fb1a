"""Messages, workflows and the ledger itself in the metrics of the fleet: on real databases."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

from fleet_metrics import exporting, of, record, scraped, send
from support import Broker, note, until

from waooaw_celery.ledger.database import partitions
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.retention.removal import Removal, record_removal
from waooaw_celery.ledger.workflow_models import WorkflowRow
from waooaw_celery.maintenance.fleet import metrics
from waooaw_celery.maintenance.fleet.ledger import LedgerReader
from waooaw_celery.maintenance.fleet.messages import MessageReader
from waooaw_celery.maintenance.fleet.samples import OTHER
from waooaw_celery.maintenance.fleet.workflows import MAX_GROUPS, WorkflowReader
from waooaw_celery.messages.receipt import MessageEvent


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
