"""Branches that lose, errors that are no Exception, and children with an id of their own, in a real worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import psutil
import pytest
from support import Broker, pass_time, until
from test_workflows import Probe

from waooaw_celery.agents import TaskGraph, result_of
from waooaw_celery.errors import InvalidMessage, WorkflowFailed
from waooaw_celery.testing.embedded import end
from waooaw_celery.workflows.states import WorkflowStatus


@pytest.fixture(scope="module")
def worker(ledger_broker: Broker, tmp_path_factory: Any) -> Iterator[Probe]:
    """A worker that puts workflows down soon, with the ledger in PostgreSQL."""
    effects = tmp_path_factory.mktemp("branches") / "effects"
    settings = {"waooaw_workflow_lease_seconds": 2.0, "waooaw_workflow_idle_seconds": 0.3}
    with closing(ledger_broker.app()) as app:
        found = Probe(
            ledger_broker, app, effects, "-P", "threads", "-c", "4", module="workflow_moments_probe", **settings
        )
        try:
            yield found
        finally:
            end(found.process)


@pytest.fixture
def probe(worker: Probe) -> Probe:
    """The worker, without the effects of earlier tests."""
    worker.effects_file.write_text("")
    return worker


def failure(probe: Probe, name: str, **given: Any) -> WorkflowFailed:
    """Run a workflow that must fail, and return its error."""
    with pytest.raises(WorkflowFailed) as raised:
        probe.run(name, 15, **given)
    return raised.value


# --- plain functions


def test_a_branch_of_a_plain_function_that_lost_takes_no_signal(probe: Probe) -> None:
    """The function waits for the same signal later, and gets it."""
    id_ = probe.begin("plain_race")
    until(lambda: "raced" in probe.effects(), "the race")
    probe.workflows.signal(id_, "a", 7)
    assert probe.workflows.result(id_, 15) == [1, 7]


@pytest.mark.slow
def test_a_branch_of_a_plain_function_that_lost_does_not_go_on(probe: Probe) -> None:
    """The function does, and the workflow ends."""
    assert probe.run("plain_race_goes_on", 15) == 1
    assert probe.effects() == ["after the race"]


def test_a_plain_function_goes_on_after_a_branch_that_failed(probe: Probe) -> None:
    """Its other branch waited for a signal."""
    assert probe.run("plain_gather_fails", 15) == "caught"


@pytest.mark.parametrize(("what", "type_"), [("stop iteration", "RuntimeError"), ("other", "Interruption")])
def test_any_error_of_a_plain_function_fails_it(probe: Probe, what: str, type_: str) -> None:
    """Also one that is no Exception, and one that no future can carry."""
    assert failure(probe, "plain_raises", what=what).type == type_


@pytest.mark.slow
def test_a_plain_function_that_waits_holds_no_thread(probe: Probe) -> None:
    """Its thread ends when it is put down."""
    process = psutil.Process(probe.process.pid)
    probe.run("plain_gather_fails")  # what is started once
    before = process.num_threads()
    ids = [probe.begin("plain_waits") for _ in range(60)]
    until(lambda: all(probe.workflows.get(id_).status is WorkflowStatus.WAITING for id_ in ids), "the waits")
    until(lambda: process.num_threads() < before + 40, "the end of the threads")
    for id_ in ids:
        probe.workflows.signal(id_, "go", id_)
    assert [probe.workflows.result(id_) for id_ in ids] == ids


# --- steps


def test_an_error_of_a_step_that_is_no_exception_fails_it(probe: Probe) -> None:
    """The step is called once."""
    error = failure(probe, "step_interrupts")
    assert error.type == "HandlerExited"
    assert "Interruption" in str(error)
    assert probe.effects() == ["interrupt"]


def test_a_step_that_cancels_itself_fails(probe: Probe) -> None:
    """Such as one that awaits a task which was cancelled."""
    assert failure(probe, "step_is_cancelled").type == "HandlerExited"


@pytest.mark.slow
def test_a_step_that_lost_a_race_is_cancelled(probe: Probe) -> None:
    """The workflow does not wait for it, and it has no effect."""
    began_at = time.monotonic()
    assert probe.run("step_loses", seconds=3) == 1
    assert time.monotonic() - began_at < 2.5
    pass_time(3)
    assert probe.effects() == []


def test_a_step_that_is_awaited_twice_is_called_once(probe: Probe) -> None:
    """Both branches have its result."""
    assert probe.run("awaits_twice") == ["awaited twice", "awaited twice"]
    assert probe.effects() == ["awaited twice"]


@pytest.mark.parametrize("key", ["a\0b", "\ud800"])
def test_a_key_that_no_database_takes_is_refused(probe: Probe, key: str) -> None:
    """The step is not called."""
    assert failure(probe, "keyed", key=key).type == "InvalidMessage"
    assert probe.effects() == []


# --- children


def test_a_child_that_has_ended_has_its_result_again(probe: Probe) -> None:
    """Another step with the same id, or the same step of the next run, does not wait for ever."""
    assert probe.run("same_child", 15, child=f"{probe.name}-again") == [["x 0"], ["x 0"]]
    assert probe.run("child_in_each_run", 15, child=f"{probe.name}-runs", more=2) == ["x 0"]
    assert probe.effects() == ["x 0", "x 0"]


@pytest.mark.parametrize("given", [{"rounds": 2}, {"together": True}])
def test_a_child_that_another_step_has_is_refused(probe: Probe, given: dict[str, Any]) -> None:
    """It has another input, or another step waits for it already."""
    child = f"{probe.name}-{'-'.join(given)}"
    assert failure(probe, "same_child", child=child, **given).type == "WorkflowConflict"


# --- graphs


def test_a_graph_goes_on_although_a_reference_has_no_value(probe: Probe) -> None:
    """The task with the reference has failed."""
    graph = TaskGraph("graph", on_failure="continue")  # type: ignore[arg-type]  # its value
    graph.add_task("one", probe.name, "double", {"n": 1})
    graph.add_task("two", probe.name, "double", {"n": result_of("one", "missing")}, depends_on=["one"])
    graph.add_task("three", probe.name, "double", {"n": 3})
    found = probe.run("run_task_graph", graph=graph.to_dict())
    assert found["results"] == {"one": 2, "three": 6}
    assert found["failed"]["two"]["type"] == "InvalidMessage"


# --- arguments


@pytest.mark.parametrize("options", [{"version": 0}, {"version": 2**31}, {"deadline": timedelta(seconds=-1)}])
def test_a_start_that_could_not_run_is_refused(probe: Probe, options: dict[str, Any]) -> None:
    """The database is not asked."""
    with pytest.raises(InvalidMessage, match=r"version|duration"):
        probe.workflows.start(f"{probe.name}.local", {"rounds": 1}, **options)
