"""Two system workers that get the purge task at the same time, as two beats would send it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from support import Broker, lone_database, note, until

from waooaw_celery import AgentApp, Message
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.models import MessageRow, PurgeRow
from waooaw_celery.maintenance.tasks import PURGE
from waooaw_celery.messages.queues import system_queue
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.testing.embedded import running

ROOT = Path(__file__).parents[2]
#: Number of old messages: more than one batch of a purge.
OLD = 12_000


@pytest.fixture
def broker(redis_url: str, postgres_url: str, tmp_path: Path) -> Iterator[Broker]:
    """A broker whose ledger is a PostgreSQL database that only this test uses."""
    with lone_database(postgres_url) as url:
        yield Broker(redis_url, redis_url, tmp_path, url)


@pytest.fixture
def app(broker: Broker) -> Iterator[AgentApp]:
    app = broker.app()
    schema.upgrade(app.database)
    yield app
    app.close()


@pytest.mark.slow
def test_two_beats_purge_once(broker: Broker, app: AgentApp) -> None:
    """Each old message is removed and counted by exactly one of the two purges; a new message stays."""
    began = datetime.now(UTC) - timedelta(days=91)
    for start in range(0, OLD, 1000):
        times = [began + timedelta(microseconds=number) for number in range(start, start + 1000)]
        old = [Message(from_agent="tests", to_agent="archive", sent_at=sent_at) for sent_at in times]
        app.receipts.begin_recording([(message, "command") for message in old])()
        app.receipts.note(
            *(MessageFact(message_id=message.message_id, event=MessageEvent.HANDLED) for message in old)
        )
    new = Message(from_agent="tests", to_agent="archive")
    app.receipts.begin_recording([(new, "command")])()
    note(app.receipts, new, MessageEvent.HANDLED)
    env = os.environ | {"CELERY_BROKER_URL": broker.url, "WAOOAW_DATABASE_URL": str(broker.database_url)}
    command = [sys.executable, "-m", "celery", "-A", "beat_schedule", "worker", "-c", "1", "--without-mingle"]
    with ExitStack() as stack:
        for number in range(2):
            log = broker.folder / f"system-{number}.log"
            stack.enter_context(running([*command, "-n", f"{broker.name()}@%h"], log=log, env=env, cwd=ROOT))
        for _ in range(2):
            app.send_task(PURGE, queue=system_queue(), ignore_result=True)
        until(lambda: sum(removed(app)) == OLD, "the purge")
    assert sorted(removed(app)) in ([OLD], [0, OLD])
    with app.database.begin("count") as connection:
        assert connection.scalars(select(MessageRow.message_id)).all() == [new.message_id]


def removed(app: AgentApp) -> list[int]:
    """Return how many messages each purge recorded as removed."""
    with app.database.begin("read the purges") as connection:
        return list(connection.scalars(select(PurgeRow.messages)))
