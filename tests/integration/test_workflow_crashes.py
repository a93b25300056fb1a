"""Workflows whose processes are killed or stopped, and whose servers fail: none is lost or done twice."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from postgres_server import Server
from support import Broker, until
from test_workflows import Probe

from waooaw_celery import AgentApp
from waooaw_celery.errors import WorkflowFailed
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.testing.embedded import end
from waooaw_celery.workflows.states import StepStatus, WorkflowStatus

#: A lost process is replaced after this many seconds.
LEASE = {"waooaw_workflow_lease_seconds": 2.0, "waooaw_workflow_idle_seconds": 1.0}


@pytest.fixture
def broker(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> Iterator[Broker]:
    """Valkey with a ledger of its own, in PostgreSQL or in SQLite."""
    kind = getattr(request, "param", "postgresql")
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path}/ledger.sqlite"
    else:
        server: Server = request.getfixturevalue("server")
        url = server.url
    broker = Broker(redis_url, redis_url, tmp_path, url)
    with closing(broker.app()) as app:
        schema.upgrade(app.database)
    yield broker
    broker.clean()


@pytest.fixture
def app(broker: Broker, tmp_path: Path) -> Iterator[AgentApp]:
    """An application with another spool than its workers."""
    with closing(broker.app(waooaw_spool_folder=str(tmp_path / "spool-of-the-tests"))) as app:
        yield app


@pytest.fixture
def workers() -> Iterator[ExitStack]:
    """Ends the workers of a test."""
    with ExitStack() as stack:
        yield stack


def started(workers: ExitStack, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """Return a worker that ends with the test."""
    workers.callback(end, process)
    return process


@pytest.mark.parametrize("broker", ["postgresql", "sqlite"], indirect=True)
def test_another_process_goes_on_after_a_kill(
    broker: Broker, app: AgentApp, workers: ExitStack, tmp_path: Path
) -> None:
    """Recorded steps are not repeated; the one that ran is."""
    gate = tmp_path / "gate"
    probe = Probe(broker, app, tmp_path / "effects", "-P", "solo", **LEASE)
    first = started(workers, probe.process)
    id_ = probe.begin("waits_in_step", gate=str(gate))
    until(lambda: "waiting" in probe.effects(), "the step")
    first.kill()
    started(workers, probe.start("second"))
    until(lambda: probe.effects().count("waiting") == 2, "the step in another process")
    gate.touch()
    assert probe.workflows.result(id_) == "after"
    assert Counter(probe.effects()) == {"before": 1, "waiting": 2, "after": 1}


def test_a_warm_shutdown_ends_the_running_step_and_gives_the_workflow_back(
    broker: Broker, app: AgentApp, workers: ExitStack, tmp_path: Path
) -> None:
    """Another worker goes on at once: no lease has to end."""
    gate = tmp_path / "gate"
    probe = Probe(broker, app, tmp_path / "effects", "-P", "solo")
    first = started(workers, probe.process)
    id_ = probe.begin("waits_in_step", gate=str(gate))
    waiting = probe.begin("approve")
    until(lambda: "waiting" in probe.effects(), "the step")
    until(lambda: probe.workflows.get(waiting).status is WorkflowStatus.WAITING, "the wait")
    first.send_signal(signal.SIGTERM)
    gate.touch()
    until(lambda: first.poll() is not None, "the end of the worker")
    started(workers, probe.start("second"))
    probe.workflows.signal(waiting, "approval", "yes")
    assert probe.workflows.result(id_) == "after"
    assert probe.workflows.result(waiting) == "yes"
    assert Counter(probe.effects()) == {"before": 1, "waiting": 1, "after": 1}


@pytest.mark.slow
def test_an_answer_outlives_all_processes(
    broker: Broker, app: AgentApp, workers: ExitStack, tmp_path: Path
) -> None:
    """It comes while no process of the workflow's agent runs."""
    asked = Probe(broker, app, tmp_path / "asked", "-P", "solo")
    end(asked.process)
    probe = Probe(broker, app, tmp_path / "effects", "-P", "solo", **LEASE)
    id_ = probe.begin("asks", to=asked.name)
    until(lambda: probe.workflows.get(id_).status is WorkflowStatus.WAITING, "the wait")
    probe.process.kill()
    started(workers, asked.start())
    [request] = probe.workflows.steps(id_)
    until(lambda: app.receipts.get(str(request.request_id)).status.final, "the end of the request")
    started(workers, probe.start("second"))
    assert probe.workflows.result(id_) == 42


@pytest.mark.slow
def test_a_kill_between_the_attempts_of_a_step_is_no_new_beginning(
    broker: Broker, app: AgentApp, workers: ExitStack, tmp_path: Path
) -> None:
    """The attempts so far count: the step is tried five times in all, or once more if the kill cut an attempt."""
    probe = Probe(broker, app, tmp_path / "effects", "-P", "solo", **LEASE)
    first = started(workers, probe.process)
    id_ = probe.begin("gives_up", path=str(tmp_path / "missing"))
    until(lambda: len(probe.effects()) >= 2, "two attempts")
    first.kill()
    started(workers, probe.start("second"))
    with pytest.raises(WorkflowFailed, match="it is missing"):
        probe.workflows.result(id_, 60)
    assert len(probe.effects()) in (5, 6)
    [step] = probe.workflows.steps(id_)
    assert step.attempts == 5


@pytest.mark.slow
def test_a_cancelled_workflow_is_retried_although_its_request_was_not_answered(
    broker: Broker, app: AgentApp, workers: ExitStack, tmp_path: Path
) -> None:
    """The answer comes after the end, and is dropped; the new run asks again."""
    asked = Probe(broker, app, tmp_path / "asked", "-P", "solo")
    end(asked.process)
    probe = Probe(broker, app, tmp_path / "effects", "-P", "solo", **LEASE)
    started(workers, probe.process)
    id_ = probe.begin("asks", to=asked.name)
    until(lambda: probe.workflows.get(id_).status is WorkflowStatus.WAITING, "the wait")
    probe.workflows.cancel(id_)
    until(lambda: probe.workflows.get(id_).status is WorkflowStatus.CANCELLED, "the end")
    started(workers, asked.start())
    [first] = probe.workflows.steps(id_)
    until(lambda: app.receipts.get(str(first.request_id)).status.final, "the end of the request")
    probe.workflows.retry(id_)
    assert probe.workflows.result(id_) == 42
    [second] = probe.workflows.steps(id_)
    assert second.request_id != first.request_id


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["solo", "prefork", "threads"])
def test_many_workflows_survive_kills(
    broker: Broker, app: AgentApp, workers: ExitStack, tmp_path: Path, pool: str
) -> None:
    """Each ends once, and each step that was recorded has one outcome."""
    probe = Probe(broker, app, tmp_path / "effects", "-P", pool, "-c", "2", **LEASE)
    running = started(workers, probe.process)
    started(workers, probe.start("other"))
    ids = [probe.begin("long", rounds=3) for _ in range(20)]
    for number in range(3):
        until(lambda number=number: len(probe.effects()) >= 20 + 30 * number, "some steps")  # type: ignore[misc]
        running.kill()
        running = started(workers, probe.start(f"next-{number}"))
        if number == 0:
            for id_ in ids:
                probe.workflows.signal(id_, "go", id_)
    for id_ in ids:
        made = probe.workflows.result(id_, 90)
        assert made[-1] == id_
        assert [line for line in made if isinstance(line, str)][:3] == [f"{id_} {number}" for number in range(3)]
        steps = probe.workflows.steps(id_)
        assert {step.status for step in steps} == {StepStatus.COMPLETED, StepStatus.REGISTERED}
    # A step whose process was killed before its record was called again.
    assert max(Counter(probe.effects()).values()) <= 4


@pytest.mark.slow
def test_a_restart_of_the_database_loses_nothing(
    broker: Broker, app: AgentApp, server: Server, workers: ExitStack, tmp_path: Path
) -> None:
    """Outcomes wait in memory until it answers."""
    probe = Probe(broker, app, tmp_path / "effects", "-P", "threads", "-c", "4", **LEASE)
    started(workers, probe.process)
    ids = [probe.begin("long", rounds=5) for _ in range(10)]
    until(lambda: len(probe.effects()) > 10, "some steps")
    server.stop()
    server.start()
    for id_ in ids:
        until(lambda id_=id_: _signal(probe, id_) is None, "the signal")  # type: ignore[misc]
    for id_ in ids:
        assert probe.workflows.result(id_, 90)[-1] == "go on"


def _signal(probe: Probe, id_: str) -> Exception | None:
    try:
        probe.workflows.signal(id_, "go", "go on", signal_id=f"go-{id_}")
    except OSError as error:
        return error
    return None


@pytest.mark.slow
def test_a_step_that_ends_its_processes_is_stuck(
    broker: Broker, app: AgentApp, workers: ExitStack, tmp_path: Path
) -> None:
    """After five of them. It can be cancelled."""
    probe = Probe(broker, app, tmp_path / "effects", "-P", "prefork", "-c", "1", waooaw_workflow_lease_seconds=1.0)
    started(workers, probe.process)
    id_ = probe.begin("dies")
    until(lambda: probe.workflows.get(id_).status is WorkflowStatus.STUCK, "the stuck workflow", 60)
    assert "_exit" in probe.workflows.get(id_).error["message"]
    assert probe.effects() == ["alive"]
    probe.workflows.cancel(id_)
    with pytest.raises(WorkflowFailed, match="cancelled"):
        probe.workflows.result(id_)


@pytest.mark.slow
def test_a_version_without_a_worker_is_stuck_until_one_comes(
    broker: Broker, app: AgentApp, workers: ExitStack, tmp_path: Path
) -> None:
    """It says why. It can be cancelled by a worker with another version."""
    probe = Probe(broker, app, tmp_path / "effects", "-P", "solo", **LEASE)
    started(workers, probe.process)
    ids = [probe.workflows.start(f"{probe.name}.versioned", version=9).workflow_id for _ in range(1)]
    until(lambda: probe.workflows.get(ids[0]).status is WorkflowStatus.STUCK, "the stuck workflow")
    found = probe.workflows.get(ids[0])
    assert found.error["type"] == "NoWorkerForVersion"
    probe.workflows.cancel(ids[0])
    with pytest.raises(WorkflowFailed, match="cancelled"):
        probe.workflows.result(ids[0])


def test_a_workflow_starts_although_no_worker_runs(
    broker: Broker, app: AgentApp, workers: ExitStack, tmp_path: Path
) -> None:
    """Its agent finds it. A signal that was sent before waits."""
    probe = Probe(broker, app, tmp_path / "effects", "-P", "solo", **LEASE)
    end(probe.process)
    id_ = probe.begin("approve")
    probe.workflows.signal(id_, "approval", "early")
    assert probe.workflows.get(id_).status is WorkflowStatus.PENDING
    started(workers, probe.start("second"))
    assert probe.workflows.result(id_) == "early"


@pytest.mark.slow
def test_a_message_is_sent_once_when_the_process_dies_after_it(
    broker: Broker, app: AgentApp, workers: ExitStack, tmp_path: Path
) -> None:
    """The process dies before the step is recorded, or after it; the event is published once too."""
    probe = Probe(broker, app, tmp_path / "effects", "-P", "solo", **LEASE)
    started(workers, probe.process)
    id_ = probe.begin("tells", word="alone", dies=True)
    until(lambda: "died alone" in probe.effects(), "the death")
    started(workers, probe.start("second"))
    probe.workflows.result(id_, 60)
    expected = [f"heard alone in {id_}", "noticed told.all alone"]
    # What the process that died had claimed comes back when its lease ends.
    until(lambda: set(probe.effects()) >= set(expected), "the message and the event", 60)
    assert sorted(line for line in probe.effects() if line.startswith(("heard", "noticed"))) == expected


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_journal_of_many_steps_is_replayed(
    broker: Broker, app: AgentApp, workers: ExitStack, tmp_path: Path
) -> None:
    """A warning proposes to begin anew; a process that takes over reads all steps and goes on."""
    probe = Probe(broker, app, tmp_path / "effects", "-P", "solo", **LEASE)
    first = started(workers, probe.process)
    id_ = probe.begin("many_steps", steps=20_000)
    until(lambda: probe.workflows.get(id_).steps > 11_000, "half of the steps", 120)
    first.kill()
    assert "continue_as_new" in (broker.folder / f"{probe.name}.log").read_text()
    started(workers, probe.start("second"))
    assert probe.workflows.result(id_, 120) == sum(range(20_000))
    assert probe.workflows.get(id_).steps == 20_000
