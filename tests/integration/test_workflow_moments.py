"""Commands, deadlines and crashes that come at a bad moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import psycopg2  # type: ignore[import-untyped]
import pytest
from postgres_server import Server
from sqlalchemy import text
from support import Broker, pass_time, until
from test_workflow_crashes import app as app
from test_workflow_crashes import broker as broker
from test_workflow_crashes import started
from test_workflow_crashes import workers as workers
from test_workflows import Probe

from waooaw_celery import AgentApp
from waooaw_celery.errors import InvalidMessage, WorkflowEnded, WorkflowFailed
from waooaw_celery.workflows.states import WorkflowStatus as Status

Start: TypeAlias = Callable[..., Probe]


@pytest.fixture
def start(broker: Broker, app: AgentApp, workers: ExitStack, tmp_path: Path) -> Start:
    """Starts the probe in a pool."""

    def start(pool: str = "solo", **settings: Any) -> Probe:
        settings = {"waooaw_workflow_lease_seconds": 2.0, "waooaw_workflow_idle_seconds": 0.3} | settings
        options = ("-P", pool, "-c", "4")
        probe = Probe(broker, app, tmp_path / "effects", *options, module="workflow_moments_probe", **settings)
        started(workers, probe.process)
        return probe

    return start


def has_status(probe: Probe, id_: str, *wanted: Status) -> Callable[[], bool]:
    """Return whether a workflow is in one of some states, as a condition."""
    return lambda: probe.workflows.get(id_).status in wanted


def ended_as(probe: Probe, id_: str) -> str:
    """Wait for the end of a workflow that has no result, and return its state."""
    with pytest.raises(WorkflowFailed) as raised:
        probe.workflows.result(id_)
    return raised.value.status


# --- while what was done is being undone


def undoing(probe: Probe, path: Path, fails: bool, **options: Any) -> str:
    """Start a workflow, and wait until its compensations wait for a file, and it is not in memory any more."""
    given = {"path": str(path), "fails": fails}
    id_ = probe.workflows.start(f"{probe.name}.undone_slowly", given, **options).workflow_id
    if not fails:
        until(has_status(probe, id_, Status.WAITING), "the wait")
        probe.workflows.cancel(id_)
    until(lambda: f"at {path.name}" in probe.effects(), "the compensation")
    pass_time(1)
    return id_


@pytest.mark.slow
def test_a_pause_does_not_let_a_cancelled_workflow_go_on(start: Start, tmp_path: Path) -> None:
    """Its function does not run again, and everything is undone."""
    probe, path = start("threads"), tmp_path / "file"
    id_ = undoing(probe, path, fails=False)
    probe.workflows.pause(id_)
    pass_time(1)
    probe.workflows.resume(id_)
    probe.workflows.signal(id_, "go")
    path.touch()
    assert ended_as(probe, id_) == "cancelled"
    assert probe.effects() == ["did", "undo 3", "at file", "undo 1"]


@pytest.mark.slow
def test_a_cancel_does_not_stop_compensations(start: Start, tmp_path: Path) -> None:
    """Nor does the deadline: the workflow failed before."""
    probe, path = start("threads"), tmp_path / "file"
    id_ = undoing(probe, path, fails=True, deadline=timedelta(seconds=1.5))
    probe.workflows.cancel(id_, compensate=False)
    pass_time(1)
    path.touch()
    assert ended_as(probe, id_) == "compensated"
    assert probe.effects() == ["did", "undo 3", "at file", "undo 1"]


@pytest.mark.slow
def test_compensations_do_not_need_the_version(
    start: Start, workers: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker with another version carries them out."""
    probe, path = start(), tmp_path / "file"
    id_ = probe.begin("of_a_version", path=str(path))
    until(has_status(probe, id_, Status.WAITING), "the wait")
    probe.workflows.cancel(id_)
    until(has_status(probe, id_, Status.COMPENSATING), "the compensation")
    probe.process.kill()
    monkeypatch.setitem(os.environ, "PROBE_VERSION", "2")
    started(workers, probe.start("second"))
    path.touch()
    assert ended_as(probe, id_) == "cancelled"
    assert probe.effects()[-1] == "undo 1"


@pytest.mark.slow
def test_a_compensation_that_ends_its_processes_fails(start: Start) -> None:
    """After five of them; the others are carried out."""
    probe = start("prefork", waooaw_workflow_lease_seconds=1.0)
    id_ = probe.begin("undo_ends_process")
    until(has_status(probe, id_, Status.FAILED), "the end", 60)
    assert "end_process" in probe.workflows.get(id_).error["not_compensated"]
    assert probe.effects() == ["ends undo 2"] * 5 + ["undo 1"]


def test_a_compensation_that_cannot_be_tried_is_refused(start: Start) -> None:
    """When it is registered, not when it is needed."""
    probe = start()
    id_ = probe.begin("undone_never", attempts=0)
    assert ended_as(probe, id_) == "compensated"
    assert probe.workflows.get(id_).error["type"] == "InvalidMessage"
    assert probe.effects() == ["undo 1"]


def test_what_was_undone_is_not_forked(start: Start) -> None:
    """The fork would believe that it is done."""
    probe = start()
    id_ = probe.begin("saga", end="fail")
    assert ended_as(probe, id_) == "compensated"
    with pytest.raises(InvalidMessage, match="undone"):
        probe.workflows.fork(id_, from_step=f"{probe.name}.fail#1")
    assert ended_as(probe, probe.workflows.fork(id_).workflow_id) == "compensated"


# --- commands


@pytest.mark.slow
def test_a_command_outlives_the_process_that_carries_it_out(
    start: Start, workers: ExitStack, tmp_path: Path
) -> None:
    """The pause waits for a running step, and its process is killed."""
    probe, path = start(), tmp_path / "file"
    id_ = probe.begin("gated", path=str(path))
    until(lambda: "at file" in probe.effects(), "the step")
    probe.workflows.pause(id_)
    pass_time(1)
    probe.process.kill()
    path.touch()
    started(workers, probe.start("second"))
    until(has_status(probe, id_, Status.PAUSED, Status.COMPLETED), "the pause")
    assert probe.workflows.get(id_).status is Status.PAUSED


@pytest.mark.slow
def test_a_resumed_workflow_goes_on_although_its_process_ends(start: Start, tmp_path: Path) -> None:
    """It dies before it has written anything."""
    probe, path = start("prefork"), tmp_path / "file"
    id_ = probe.begin("ends_process_if", path=str(path))
    until(has_status(probe, id_, Status.WAITING), "the wait")
    probe.workflows.pause(id_)
    until(has_status(probe, id_, Status.PAUSED), "the pause")
    path.touch()
    probe.workflows.resume(id_)
    pass_time(1)
    path.unlink()
    probe.workflows.signal(id_, "go", 1)
    assert probe.workflows.result(id_) == 1


@pytest.mark.slow
def test_a_pause_reaches_a_workflow_that_begins_again(start: Start) -> None:
    """Also when it comes just as one run ends."""
    probe = start("threads")
    for _ in range(20):
        id_ = probe.begin("begins_again")
        until(lambda id_=id_: probe.workflows.get(id_).run > 2, "some runs")  # type: ignore[misc]
        probe.workflows.pause(id_)
        until(has_status(probe, id_, Status.PAUSED), "the pause", 5)
        probe.workflows.cancel(id_)
        assert ended_as(probe, id_) == "cancelled"


@pytest.mark.slow
def test_a_command_that_came_too_late_does_not_reach_the_next_run(start: Start) -> None:
    """Several cancel a workflow at the same time; then it is retried."""
    probe = start()
    for number in range(10):
        id_ = probe.begin("approve")
        until(has_status(probe, id_, Status.WAITING), "the wait")
        with suppress(WorkflowEnded):
            while True:
                probe.workflows.cancel(id_)
        probe.workflows.retry(id_)
        probe.workflows.signal(id_, "approval", number)
        assert probe.workflows.result(id_) == number


@pytest.mark.slow
def test_a_request_that_was_not_sent_before_a_pause_is_sent_after_it(start: Start, app: AgentApp) -> None:
    """Its sender was paused too."""
    probe = start()
    app.restrictions.pause(probe.name, by="ada")
    id_ = probe.begin("asks", to=probe.name)
    until(lambda: probe.workflows.steps(id_), "the step")
    pass_time(0.5)
    probe.workflows.pause(id_)
    until(has_status(probe, id_, Status.PAUSED), "the pause")
    app.restrictions.resume(probe.name)
    probe.workflows.resume(id_)
    assert probe.workflows.result(id_) == 42


def test_a_command_behind_many_signals_is_found(start: Start, app: AgentApp) -> None:
    """More than are read at once."""
    probe = start()
    id_ = probe.begin("approve")
    probe.workflows.pause(id_)
    until(has_status(probe, id_, Status.PAUSED), "the pause")
    signals = """
        INSERT INTO waooaw_workflow_inputs (input_id, workflow_id, number, kind, key, payload, at)
        SELECT :id || n, :id, inputs + n, 'signal', 'other', '1', now()
        FROM waooaw_workflows, generate_series(1, 5001) AS n WHERE workflow_id = :id
    """
    counted = "UPDATE waooaw_workflows SET inputs = inputs + 5001 WHERE workflow_id = :id"
    with app.database.begin("send many signals") as connection:
        connection.execute(text(signals), {"id": id_})
        connection.execute(text(counted), {"id": id_})
    probe.workflows.signal(id_, "approval", "yes")
    probe.workflows.resume(id_)
    assert probe.workflows.result(id_) == "yes"


def test_a_deadline_ends_a_paused_workflow(start: Start) -> None:
    """A pause does not stop the time."""
    probe = start()
    id_ = probe.workflows.start(f"{probe.name}.approve", deadline=timedelta(seconds=1)).workflow_id
    probe.workflows.pause(id_)
    assert ended_as(probe, id_) == "timed out"


@pytest.mark.slow
def test_a_paused_workflow_without_a_worker_stays_paused(
    start: Start, workers: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal arrives while only another version runs; when its own version comes, it is still paused."""
    probe = start()
    id_ = probe.begin("of_a_version", path="")
    until(has_status(probe, id_, Status.WAITING), "the wait")
    probe.workflows.pause(id_)
    until(has_status(probe, id_, Status.PAUSED), "the pause")
    probe.process.kill()
    monkeypatch.setitem(os.environ, "PROBE_VERSION", "2")
    other = started(workers, probe.start("second"))
    probe.workflows.signal(id_, "go")
    until(has_status(probe, id_, Status.STUCK), "the missing version")
    other.kill()
    monkeypatch.delitem(os.environ, "PROBE_VERSION")
    started(workers, probe.start("third"))
    until(has_status(probe, id_, Status.PAUSED, Status.COMPLETED), "the pause")
    assert probe.workflows.get(id_).status is Status.PAUSED


@pytest.mark.slow
def test_a_workflow_is_cancelled_before_it_is_known_that_it_has_no_worker(
    start: Start, workers: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker with another version does it."""
    probe = start()
    id_ = probe.begin("of_a_version", path="")
    until(has_status(probe, id_, Status.WAITING), "the wait")
    probe.process.kill()
    probe.workflows.cancel(id_, compensate=False)
    monkeypatch.setitem(os.environ, "PROBE_VERSION", "2")
    started(workers, probe.start("second"))
    assert ended_as(probe, id_) == "cancelled"


# --- the database


@pytest.mark.slow
def test_an_outcome_outlives_an_outage_that_is_longer_than_the_lease(
    start: Start, server: Server, tmp_path: Path
) -> None:
    """The database refuses writes meanwhile; the process does not take the workflow over from itself."""
    probe, path = start(), tmp_path / "file"
    id_ = probe.begin("gated", path=str(path))
    until(lambda: "at file" in probe.effects(), "the step")
    [[name]] = server.run("SELECT current_database()")
    _let_write(server, name, False)
    path.touch()
    pass_time(4)
    _let_write(server, name, True)
    assert probe.workflows.result(id_) == "after the gate"
    assert probe.effects() == ["at file", "after the gate"]


def _let_write(server: Server, name: str, allowed: bool) -> None:
    options = "-c default_transaction_read_only=off"
    connection = psycopg2.connect(server.url.replace("+psycopg2", ""), options=options)
    connection.autocommit = True
    with connection.cursor() as cursor:
        value = "off" if allowed else "on"
        cursor.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
    connection.close()
    server.cut()


@pytest.mark.slow
def test_a_child_begins_when_the_database_answers_again(start: Start, server: Server, tmp_path: Path) -> None:
    """Its parent does not fail."""
    probe, path = start(waooaw_workflow_lease_seconds=30.0), tmp_path / "file"
    id_ = probe.begin("plain_child", path=str(path), child=f"{probe.name}-child")
    until(lambda: "at file" in probe.effects(), "the wait")
    server.stop()
    path.touch()
    pass_time(2)
    server.start()
    until(lambda: _result(probe, id_) == ["x 0"], "the result")


def _result(probe: Probe, id_: str) -> Any:
    with suppress(OSError):
        return probe.workflows.result(id_)
    return None
