"""Handlers with ``once=True`` whose process ends after the commit and before the report: they are HANDLED."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from support import WAIT_SECONDS, Broker, note, settled, until

from waooaw_celery import (
    AgentApp,
    Message,
    MessageAuditTrail,
    MessageBus,
    MessageStatus,
    MessageType,
    RequestResponseHandler,
)
from waooaw_celery.errors import AuditUnavailable
from waooaw_celery.ledger.inbox import is_effect_committed
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.testing.embedded import end_all

#: Its tests list dead letters: those of RabbitMQ are shared.
pytestmark = pytest.mark.usefixtures("dead_letters_alone")


@pytest.fixture(scope="module")
def broker(ledgered_broker: Broker) -> Broker:
    """Each broker in turn, both with the ledger."""
    return ledgered_broker


@pytest.fixture(scope="module")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a file that makes the next worker process pause after its commit."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="module")
def name(broker: Broker, hold: Path) -> Iterator[str]:
    """The name of an agent with the prefork pool."""
    name, app = broker.name(), broker.app()
    with app.database.begin("make a table") as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS effects (label text, pid int)"))
    env = {"KILL_AFTER_COMMIT": f"{hold}.never", "HOLD_AFTER_COMMIT": str(hold)}
    process = broker.start(name, app, module="exactly_once_probe", env=env)
    yield name
    end_all([process])
    app.close()


@pytest.fixture
def pids(app: AgentApp) -> Callable[[str], list[int]]:
    """Return a function that returns the ids of the processes that made the effect with a label."""

    def _pids(label: str) -> list[int]:
        with app.database.begin("read the effects") as connection:
            found = connection.scalars(text("SELECT pid FROM effects WHERE label = :label"), {"label": label})
            return list(found)

    return _pids


def send_and_pause_after_commit(app: AgentApp, name: str, hold: Path, **fields: Any) -> tuple[Message, str]:
    """Send a message; return it with its label when its effect is committed and its process pauses."""
    label = str(uuid4())
    message = Message(from_agent="tests", to_agent=name, payload={"label": label}, **fields)
    Path(f"{hold}.committed").unlink(missing_ok=True)
    hold.touch()
    MessageBus(app).send(message)
    until(Path(f"{hold}.committed").exists, "the commit")
    return message, label


def final_events(app: AgentApp, message_id: str) -> list[str]:
    """Return the final events of a message in the ledger."""
    events = MessageAuditTrail(app.ledger).receipt(message_id).events
    return [event.event for event in events if MessageEvent(event.event).terminal]


def assert_handled_once(
    app: AgentApp, message: Message, label: str, pids: Callable[[str], list[int]], attempts: int = 2
) -> None:
    """Check that a message had one effect, is HANDLED in the ledger, and is no dead letter."""
    assert settled(app, message.message_id) is MessageStatus.HANDLED
    assert MessageBus(app).receipt(message.message_id).error is None
    assert len(pids(label)) == 1
    assert final_events(app, message.message_id) == ["handled"]
    assert MessageBus(app).receipt(message.message_id).attempts == attempts
    assert message.message_id not in [
        dead_letter.message_id for dead_letter in app.dead_letters.list(agent=message.to_agent)
    ]


def test_a_handler_that_is_cancelled_after_its_commit_is_handled(
    app: AgentApp, name: str, hold: Path, pids: Callable[[str], list[int]]
) -> None:
    """The signal ends its process; the effect stays."""
    message, label = send_and_pause_after_commit(app, name, hold)
    receipt = MessageBus(app).cancel(message.message_id, running=True, timeout=20)
    assert receipt.status is MessageStatus.HANDLED
    assert receipt.cancel_requested_at is not None
    assert_handled_once(app, message, label, pids)


def test_a_handler_that_is_cancelled_before_its_commit_has_no_effect(
    app: AgentApp, name: str, hold: Path, pids: Callable[[str], list[int]], tmp_path: Path
) -> None:
    """It is CANCELLED."""
    gate, label = tmp_path / "gate", str(uuid4())
    sent = MessageBus(app).send(
        Message(from_agent="tests", to_agent=name, payload={"label": label, "wait_for": str(gate)})
    )
    until(Path(f"{gate}.begun").exists, "the attempt")
    assert MessageBus(app).cancel(sent.message_id, running=True, timeout=20).status is MessageStatus.CANCELLED
    assert pids(label) == []
    assert final_events(app, sent.message_id) == ["cancelled"]


def test_a_request_that_is_cancelled_after_its_commit_is_answered(
    app: AgentApp, name: str, hold: Path, pids: Callable[[str], list[int]]
) -> None:
    """The answer is the return value of the handler."""
    label, known_ids = str(uuid4()), {receipt.message_id for receipt in app.receipts.recent()}
    Path(f"{hold}.committed").unlink(missing_ok=True)
    hold.touch()
    with ThreadPoolExecutor(1) as thread:
        request = thread.submit(RequestResponseHandler(app).request, name, "book", {"label": label}, timeout=60)
        until(Path(f"{hold}.committed").exists, "the commit")
        [receipt] = [each for each in app.receipts.recent() if each.message_id not in known_ids]
        assert MessageBus(app).cancel(receipt.message_id, running=True, timeout=20).status is MessageStatus.HANDLED
        answer: Any = request.result()
    assert [answer["pid"]] == pids(label)


def test_a_handler_that_is_revoked_after_its_commit_is_handled(
    app: AgentApp, name: str, hold: Path, pids: Callable[[str], list[int]]
) -> None:
    """Celery's ``revoke(terminate=True)`` ends the process too."""
    message, label = send_and_pause_after_commit(app, name, hold)
    app.control.revoke(message.message_id, terminate=True, destination=list(app.registry.get(name).workers))
    assert_handled_once(app, message, label, pids)


@pytest.mark.parametrize("kind", [MessageType.QUERY, MessageType.ACK])
def test_a_time_limit_after_the_commit_is_no_failure(
    kind: MessageType, app: AgentApp, name: str, hold: Path, pids: Callable[[str], list[int]]
) -> None:
    """The hard limit ends the process, and the soft limit raises in it."""
    message, label = send_and_pause_after_commit(app, name, hold, message_type=kind)
    assert_handled_once(app, message, label, pids, attempts=2 if kind is MessageType.QUERY else 1)


def test_a_process_killed_after_commit_and_cancellation_is_handled(
    app: AgentApp, name: str, hold: Path, pids: Callable[[str], list[int]]
) -> None:
    """The message is redelivered, and not dropped, though its cancellation was requested."""
    message, label = send_and_pause_after_commit(app, name, hold)
    MessageBus(app).cancel(message.message_id, timeout=5)
    [pid] = pids(label)
    os.kill(pid, signal.SIGKILL)
    assert_handled_once(app, message, label, pids)


def test_a_message_that_expires_between_commit_and_report_is_handled(
    app: AgentApp, name: str, hold: Path, pids: Callable[[str], list[int]]
) -> None:
    """Its process is killed after the expiry: the redelivered message is not dropped as expired."""
    message, label = send_and_pause_after_commit(app, name, hold, ttl_seconds=3)
    [pid] = pids(label)
    expires_at: Any = message.expires_at
    until(lambda: expires_at < datetime.now(UTC), "the expiry")
    os.kill(pid, signal.SIGKILL)
    assert_handled_once(app, message, label, pids)


@pytest.mark.parametrize(
    "final_event", [MessageEvent.CANCELLED, MessageEvent.FAILED, MessageEvent.DEAD, MessageEvent.EXPIRED]
)
def test_the_ledger_records_only_handled_after_a_commit(app: AgentApp, final_event: MessageEvent) -> None:
    """Another final event is not recorded, whether it comes from a sweep, a recovery or the spool."""
    message = Message(from_agent="tests", to_agent="nobody")
    app.receipts.begin_recording([(message, "command")])()
    with app.database.begin("insert a note") as connection:
        connection.execute(
            text("INSERT INTO waooaw_inbox VALUES (:id, 'command', now(), NULL)"), {"id": message.message_id}
        )
    note(app.receipts, message, final_event, error="some error")
    assert final_events(app, message.message_id) == ["handled"]
    assert MessageBus(app).receipt(message.message_id).error is None


@pytest.mark.parametrize("end", ["commit", "rollback", None])
def test_has_effect_waits_for_a_pending_commit(app: AgentApp, end: str | None) -> None:
    """The commit of a killed process may still succeed; the wait for it is bounded."""
    message_id = str(uuid4())
    with app.database.handlers.connect() as connection, ThreadPoolExecutor(1) as thread:
        note = text("INSERT INTO waooaw_inbox VALUES (:id, 'command', now(), NULL)")
        connection.execute(note, {"id": message_id})
        effect = thread.submit(is_effect_committed, app.database, message_id, "command")
        until(lambda: _waits_for_lock(app), "the wait")
        if end is None:
            with pytest.raises(AuditUnavailable, match="lock timeout"):
                effect.result(WAIT_SECONDS)
        else:
            getattr(connection, end)()
            assert effect.result(WAIT_SECONDS) is (end == "commit")
    with app.database.begin("look for the note") as other:
        count = text("SELECT count(*) FROM waooaw_inbox WHERE message_id = :id")
        assert other.scalar(count, {"id": message_id}) == (end == "commit")


def _waits_for_lock(app: AgentApp) -> bool:
    with app.database.begin("look for a waiting insert") as connection:
        waits = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND query ILIKE"
        return bool(connection.scalar(text(f"{waits} '%INSERT INTO waooaw_inbox%'")))
