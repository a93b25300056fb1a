"""The deadline of a request ends the work on it, in the whole chain: its caller no longer waits."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from process_pool import spawn
from sqlalchemy import text
from support import PROBE_FOLDER, Broker, settled, until

from waooaw_celery import AgentApp, MessageAuditTrail, MessageStatus
from waooaw_celery import RequestResponseHandler as Requests
from waooaw_celery.errors import RequestTimeout
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.testing.embedded import end, end_all

#: Seconds within which a handler ends after its deadline. Without one, it would run for 20 s.
SOON = 5.0
#: The kinds of methods.
KINDS = ("hold", "hold_coroutine", "hold_generator", "hold_async_generator")
#: The errors that stop them where they wait. An asynchronous generator waits at an await, or for its reader.
STOPS = {
    "hold_coroutine": ("CancelledError",),
    "hold_generator": ("GeneratorExit",),
    "hold_async_generator": ("CancelledError", "GeneratorExit"),
}


@pytest.fixture(scope="module")
def broker(ledgered_broker: Broker) -> Broker:
    """Each broker in turn, both with the ledger."""
    return ledgered_broker


@pytest.fixture(scope="module")
def app(broker: Broker) -> Iterator[AgentApp]:
    """An application that sends in the name of ``tests``."""
    app = broker.app()
    yield app
    app.close()


@pytest.fixture(scope="module")
def agents(broker: Broker, app: AgentApp) -> Iterator[list[str]]:
    """Names of four agents with the prefork pool."""
    names = [broker.name() for _ in range(4)]
    processes = [broker.start(name, app, module="chain_probe") for name in names]
    yield names
    end_all(processes)


class Marks:
    """The file in which handlers note what they did."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[tuple[str, str, float]]:
        """Return the agent, what happened, and when, in order."""
        fields = [line.split() for line in self.path.read_text().splitlines()] if self.path.exists() else []
        return [(agent, what, float(at)) for agent, what, at in fields]

    def ends(self) -> dict[str, tuple[str, float]]:
        """Return by agent what ended its handler, and when."""
        return {agent: (what, at) for agent, what, at in self.lines() if what != "began"}


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(tmp_path / "marks")


def time_out(app: AgentApp, agent: str, method: str, params: dict[str, Any], timeout: float = 2) -> None:
    """Send a request, and check that its caller stops waiting, or hears just before that a timeout is over."""
    response = Requests(app).send_request(agent, method, params, timeout=timeout)
    assert response.seconds > 0.8 * timeout
    assert isinstance(response.error, RequestTimeout) or "RequestTimeout" in str(response.error), response


def assert_ended(app: AgentApp, agent: str, error: str, *statuses: MessageStatus) -> None:
    """Check how the newest message of an agent ended: with one end, with this error, and without a dead letter."""
    received = [each for each in app.receipts.recent() if each.to_agent == agent]
    [*_, receipt] = [each for each in received if each.status is not MessageStatus.ANSWERED]
    status = settled(app, receipt.message_id)
    assert status in (statuses or (MessageStatus.FAILED,))
    record = MessageAuditTrail(app.ledger).receipt(receipt.message_id)
    assert error in (record.receipt.error or "")
    ends = [event.event for event in record.events if MessageEvent(event.event).terminal]
    assert ends == [status.value]
    if app.driver == "redis":  # to list those of RabbitMQ takes them off a queue that other tests use
        assert receipt.message_id not in [each.message_id for each in app.dead_letters.list(agent=agent)]


@pytest.mark.parametrize("kind", KINDS)
def test_all_agents_of_a_chain_stop_at_the_deadline(
    app: AgentApp, agents: list[str], marks: Marks, kind: str
) -> None:
    """A caller waits for 2 s. A requests B, B requests C: none of the three works much longer."""
    chain = agents[:3]
    began = time.time()
    time_out(app, chain[0], kind, {"then": chain[1:], "marks": str(marks.path)})
    until(lambda: marks.ends().keys() == set(chain), "the end of three handlers")
    assert all(1.5 < at - began < 2 + SOON for _, at in marks.ends().values()), marks.lines()
    assert "returned" not in [what for what, _ in marks.ends().values()]
    # Whoever reads a stream closes it when it is stopped, which cancels the handler below.
    is_stream = kind.endswith("generator")
    statuses = (MessageStatus.FAILED, MessageStatus.CANCELLED) if is_stream else (MessageStatus.FAILED,)
    assert_ended(app, chain[2], "" if is_stream else "DeadlineExceeded: ", *statuses)
    for name in chain:
        assert Requests(app).request(name, "hold", {"then": [], "marks": str(marks.path), "seconds": 0}) == "done"


def test_a_chain_of_four_agents_stops(app: AgentApp, agents: list[str], marks: Marks) -> None:
    """The deadline of the first request is that of the last."""
    began = time.time()
    time_out(app, agents[0], "hold_coroutine", {"then": agents[1:], "marks": str(marks.path)})
    until(lambda: marks.ends().keys() == set(agents), "the end of four handlers")
    assert "returned" not in [what for what, _ in marks.ends().values()]
    assert all(at - began < 2 + SOON for _, at in marks.ends().values()), marks.lines()


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_whose_caller_was_killed_stops_at_the_deadline(
    app: AgentApp, broker: Broker, agents: list[str], marks: Marks, tmp_path: Path, kind: str
) -> None:
    """Nobody reports the death of a caller. Its message fails with a clear error and is no dead letter."""
    params = json.dumps({"then": [], "marks": str(marks.path)})
    command = [sys.executable, "asker.py", agents[0], kind, params, "3"]
    env = os.environ | {
        "CELERY_BROKER_URL": broker.url,
        "CELERY_RESULT_BACKEND": broker.redis_url,
        "WAOOAW_DATABASE_URL": str(broker.database_url),
        "WAOOAW_SPOOL_FOLDER": str(broker.spool_folder),
    }
    process = spawn(command, log=tmp_path / "asker.log", env=env, cwd=PROBE_FOLDER)
    try:
        until(marks.lines, "the start of the handler")
        began = marks.lines()[0][2]
    finally:
        process.kill()
        process.wait(20)
    until(marks.ends, "the end of the handler")
    assert marks.ends()[agents[0]][1] - began < 3 + SOON
    assert_ended(app, agents[0], "DeadlineExceeded: ")


@pytest.mark.parametrize("method", ["finish", "finish_coroutine"])
def test_a_handler_that_ignores_its_deadline_works_on(
    app: AgentApp, agents: list[str], marks: Marks, method: str
) -> None:
    """It ends two seconds after its caller, and its own request has its own time."""
    time_out(app, agents[0], method, {"then": agents[1:2], "marks": str(marks.path)}, timeout=1)
    until(lambda: agents[0] in marks.ends(), "the end of the handler")
    assert {agent: what for agent, (what, _) in marks.ends().items()} == dict.fromkeys(agents[:2], "returned")
    assert_ended(app, agents[0], "", MessageStatus.HANDLED)


def test_a_request_that_waits_past_its_deadline_is_never_begun(
    app: AgentApp, agents: list[str], marks: Marks
) -> None:
    """A busy agent does not begin it, also if its handler ignores deadlines."""
    occupation = app.signature(f"{agents[3]}.hold", kwargs={"then": [], "marks": str(marks.path), "seconds": 3})
    occupation.delay()
    until(marks.lines, "the start of the first handler")
    time_out(app, agents[3], "finish", {"then": [], "marks": str(marks.path)}, timeout=1)
    until(lambda: agents[3] in marks.ends(), "the end of the first handler")
    assert_ended(app, agents[3], "", MessageStatus.EXPIRED)
    assert len(marks.lines()) == 2


def test_a_delay_has_no_deadline(app: AgentApp, agents: list[str], marks: Marks) -> None:
    """Celery's ``.delay`` does not say how long its caller waits: the expiry bounds only the start."""
    params = {"then": [], "marks": str(marks.path), "seconds": 3}
    result = app.signature(f"{agents[0]}.hold", kwargs=params).apply_async(expires=2)
    assert result.get(timeout=20) == "done"


@pytest.mark.parametrize("kind", ["hold_generator", "hold_async_generator"])
def test_a_stream_without_a_deadline_runs_longer_than_its_timeout(
    app: AgentApp, agents: list[str], marks: Marks, kind: str
) -> None:
    """The timeout of a stream bounds the wait for each part."""
    params = {"then": [], "marks": str(marks.path), "seconds": 3}
    with Requests(app).stream(agents[0], kind, params, timeout=1) as stream:
        assert len(list(stream)) == 30


def test_shorter_time_limits_still_hold(app: AgentApp, agents: list[str], marks: Marks) -> None:
    """A soft and a hard limit of 1 s stop handlers whose callers wait for 20 s."""
    for method, error in (("limited", "SoftTimeLimitExceeded"), ("limited_hard", "TimeLimitExceeded")):
        response = Requests(app).send_request(agents[0], method, {"marks": str(marks.path)}, timeout=20)
        assert getattr(response.error, "type", None) == error
        assert response.seconds < 1 + SOON


def test_a_handler_may_return_a_part_at_its_deadline(app: AgentApp, agents: list[str], marks: Marks) -> None:
    """It catches SoftTimeLimitExceeded: its message is handled."""
    time_out(app, agents[0], "answer_in_part", {"marks": str(marks.path)})
    until(marks.ends, "the end of the handler")
    assert_ended(app, agents[0], "", MessageStatus.HANDLED)


def test_the_deadline_does_not_interrupt_what_follows_a_handler(
    app: AgentApp, agents: list[str], marks: Marks
) -> None:
    """A handler that has ended before its deadline is handled, also if its outcome is recorded after it."""
    time_out(app, agents[0], "end_before_deadline", {"marks": str(marks.path)})
    assert marks.ends()[agents[0]][0] == "returned"
    assert_ended(app, agents[0], "", MessageStatus.HANDLED)
    assert Requests(app).request(agents[0], "hold", {"then": [], "marks": str(marks.path), "seconds": 0}) == "done"


@pytest.mark.slow
@pytest.mark.parametrize(
    "pool", ["threads", *(pytest.param(pool, marks=pytest.mark.slow) for pool in ("solo", "gevent"))]
)
def test_coroutines_and_generators_stop_in_every_pool(
    app: AgentApp, broker: Broker, marks: Marks, pool: str
) -> None:
    """Coroutines are cancelled; generators stop between two parts."""
    name = broker.name()
    process = broker.start(name, app, "-P", pool, module="chain_probe")
    try:
        for kind in KINDS[1:]:
            began = time.time()
            time_out(app, name, kind, {"then": [], "marks": str(marks.path)}, timeout=1)
            until(lambda: name in marks.ends(), "the end of the handler")
            what, at = marks.ends()[name]
            assert what in STOPS[kind]
            assert at - began < 1 + SOON
            assert_ended(app, name, "DeadlineExceeded: ")
            marks.path.unlink()
    finally:
        end(process)


@pytest.fixture(scope="module")
def once_agent(broker: Broker, app: AgentApp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of an agent with ``once=True`` handlers."""
    name, folder = broker.name(), tmp_path_factory.mktemp("once")
    with app.database.begin("make a table") as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS effects (label text, pid int)"))
    env = {"KILL_AFTER_COMMIT": str(folder / "never"), "HOLD_AFTER_COMMIT": str(folder / "never")}
    process = broker.start(name, app, module="exactly_once_probe", env=env)
    yield name
    end(process)


@pytest.fixture
def effects(app: AgentApp) -> Callable[[str], int]:
    """Return a function that counts the committed effects with a label."""

    def count(label: str) -> int:
        with app.database.begin("count effects") as connection:
            query = text("SELECT count(*) FROM effects WHERE label = :label")
            return int(connection.execute(query, {"label": label}).scalar_one())

    return count


@pytest.mark.slow
def test_what_is_committed_at_the_deadline_is_handled(
    app: AgentApp, once_agent: str, effects: Callable[[str], int]
) -> None:
    """Handlers with ``once=True`` that end around their deadline: an effect is there exactly if HANDLED."""
    known = {receipt.message_id for receipt in app.receipts.recent()}
    labels: list[str] = []
    for pause, timeout in ((0.0, 20), *((pause, 1) for pause in (0.85, 0.93, 0.96, 0.98, 1.0, 1.02, 3.0))):
        labels.append(str(uuid4()))
        params = {"label": labels[-1], "pause": pause}
        Requests(app).send_request(once_agent, "nap_and_book", params, timeout=timeout)
    received = [each for each in app.receipts.recent() if each.to_agent == once_agent]
    receipts = [each for each in received if each.message_id not in known]
    receipts.sort(key=lambda receipt: receipt.sent_at)
    statuses = [settled(app, receipt.message_id) for receipt in receipts]
    assert [status is MessageStatus.HANDLED for status in statuses] == [effects(label) == 1 for label in labels]
    assert statuses[0] is MessageStatus.HANDLED
    assert statuses[-1] is not MessageStatus.HANDLED
