"""The `waooaw workflow` commands, graphs of tasks in a worker, and the retention and erasure of workflows."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from process_pool import waooaw
from support import Broker, until
from test_workflows import Probe

from waooaw_celery.agents import TaskGraph, result_of
from waooaw_celery.aio import Workflows as AsyncWorkflows
from waooaw_celery.errors import InvalidMessage, WorkflowConflict, WorkflowFailed
from waooaw_celery.ledger.retention.erasure import erase_rows
from waooaw_celery.ledger.retention.holds import HoldKind
from waooaw_celery.ledger.retention.retention import Retention
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.testing.embedded import end
from waooaw_celery.workflows.states import WorkflowStatus


@pytest.fixture(scope="module")
def probe(ledger_broker: Broker, tmp_path_factory: Any) -> Iterator[Probe]:
    """A worker with the ledger in PostgreSQL."""
    effects = tmp_path_factory.mktemp("commands") / "effects"
    with closing(ledger_broker.app()) as app:
        found = Probe(ledger_broker, app, effects, "-P", "threads", "-c", "4")
        try:
            yield found
        finally:
            end(found.process)


def command(probe: Probe, *arguments: str) -> str:
    """Run a command and return what it prints."""
    env = {"CELERY_BROKER_URL": probe.broker.url, "WAOOAW_DATABASE_URL": str(probe.broker.database_url)}
    return waooaw("workflow", *arguments, env=env).stdout


@pytest.mark.slow
def test_a_workflow_is_started_and_steered_by_commands(probe: Probe) -> None:
    """Each command says what it did; show has the steps and what the workflow waits for."""
    id_ = f"{probe.name}-by-command"
    assert command(probe, "start", f"{probe.name}.approve", '{"timeout": 60}', "--id", id_).strip() == id_
    until(lambda: probe.workflows.get(id_).status is WorkflowStatus.WAITING, "the wait")
    shown = command(probe, "show", id_)
    assert "waiting" in shown
    assert "signal approval#1" in shown
    found = json.loads(command(probe, "show", id_, "--json"))
    assert found["workflow"]["status"] == "waiting"
    assert found["steps"][0]["kind"] == "signal"
    assert command(probe, "show", id_, "--mermaid").startswith("flowchart TD")
    assert id_ in command(probe, "list", "--agent", probe.name, "--status", "waiting")
    assert json.loads(command(probe, "pause", id_, "--by", "ada", "--json")) == {"workflow_id": id_}
    until(lambda: probe.workflows.get(id_).status is WorkflowStatus.PAUSED, "the pause")
    assert json.loads(command(probe, "resume", id_, "--json")) == {"workflow_id": id_}
    sent = json.loads(command(probe, "signal", id_, "approval", '{"ok": true}', "--json"))
    assert sent == {"workflow_id": id_, "signal": "approval"}
    assert json.loads(command(probe, "result", id_)) == {"ok": True}
    assert json.loads(command(probe, "result", id_, "--json")) == {"ok": True}
    fork = json.loads(command(probe, "fork", id_, "--json"))["workflow_id"]
    assert json.loads(command(probe, "cancel", fork, "--json")) == {"workflow_id": fork}
    until(lambda: probe.workflows.get(fork).status is WorkflowStatus.CANCELLED, "the cancellation")
    assert json.loads(command(probe, "retry", fork, "--json")) == {"workflow_id": fork, "run": 2}
    command(probe, "cancel", fork)
    stats = json.loads(command(probe, "stats", "--name", f"{probe.name}.approve", "--json"))
    assert stats["total"] == 2
    assert command(probe, "stats")


@pytest.mark.slow
def test_what_is_undone_is_shown_last_and_not_forked(probe: Probe) -> None:
    """A step is named by its path; a part of it is answered with the whole."""
    id_ = probe.begin("saga", end="fail")
    with pytest.raises(WorkflowFailed):
        probe.workflows.result(id_)
    shown = command(probe, "show", id_)
    assert shown.index("fail#1") < shown.index("undone at")
    with pytest.raises(InvalidMessage, match="Fork it from the first step"):
        probe.workflows.fork(id_, f"{probe.name}.fail#1")
    with pytest.raises(InvalidMessage, match="did you mean 'effect#1'"):
        probe.workflows.fork(id_, "effect")
    with pytest.raises(InvalidMessage, match="has undone nothing"):
        probe.workflows.retry(id_)


def test_a_step_that_is_not_awaited_is_named_in_the_log(probe: Probe) -> None:
    """It has done nothing, and the line is given."""
    assert probe.run("forgets") == "done"
    log = (probe.broker.folder / f"{probe.name}.log").read_text()
    assert re.search(r"step effect#1 of workflow .* was never awaited.*workflow_probe\.py:\d+", log)


@pytest.mark.slow
def test_a_conversation_shows_a_workflow_whole(probe: Probe) -> None:
    """Its start, its requests and their answers."""
    id_ = probe.begin("adds", start=1, rounds=2)
    probe.workflows.result(id_)
    env = {"CELERY_BROKER_URL": probe.broker.url, "WAOOAW_DATABASE_URL": str(probe.broker.database_url)}
    found = json.loads(waooaw("conversation", id_, "--json", env=env).stdout)
    kinds = [each["receipt"]["message_type"] for each in found]
    assert kinds.count("query") == 3  # the start and two requests
    assert kinds.count("response") >= 2


def graph(probe: Probe, **options: Any) -> TaskGraph:
    """Return a graph of the probe's methods."""
    found = TaskGraph("probe", **options)
    found.add_task("make", probe.name, "create", {"item": "x"}, compensation=(probe.name, "delete", {"item": "x"}))
    found.add_task("four", probe.name, "double", {"n": 2}, depends_on=["make"])
    found.add_task("eight", probe.name, "double", {"n": result_of("four")}, depends_on=["four"], priority="high")
    found.add_task("never", probe.name, "double", {"n": 1}, depends_on=["four"], when={"four": {"gt": 100}})
    found.add_task("after_never", probe.name, "double", {"n": 1}, depends_on=["never"])
    return found


def test_a_graph_of_tasks_is_run(probe: Probe) -> None:
    """Results are passed on; a condition skips a task and what depends on it."""
    plan = graph(probe)
    plan.validate(probe.app)
    found = probe.run("run_task_graph", graph=plan.to_dict())
    assert found["results"] == {"make": {"id": "create x"}, "four": 4, "eight": 8}
    assert found["skipped"] == ["never", "after_never"]


def test_a_graph_stops_at_a_failure_and_undoes(probe: Probe) -> None:
    """Or it goes on with what does not depend on the failed task."""
    plan = graph(probe)
    plan.add_task("bad", probe.name, "fail", depends_on=["eight"])
    before = len(probe.effects())
    with pytest.raises(WorkflowFailed) as raised:
        probe.run("run_task_graph", graph=plan.to_dict())
    assert raised.value.status == "compensated"
    assert probe.effects()[before:] == ["create x", "delete x"]
    plan = graph(probe, on_failure="continue")
    plan.add_task("bad", probe.name, "fail", depends_on=["make"])
    found = probe.run("run_task_graph", graph=plan.to_dict())
    assert found["failed"]["bad"]["remote_type"] == "ValueError"
    assert found["results"]["eight"] == 8


def test_ended_workflows_are_purged_unless_held(probe: Probe) -> None:
    """An open one stays."""
    ids = []
    for _ in range(2):
        started = probe.workflows.start(f"{probe.name}.timeouts", retention=RetentionPolicy.DAYS_30)
        probe.workflows.result(started.workflow_id)
        ids.append(started.workflow_id)
    ids.append(probe.begin("approve"))
    retention = Retention(probe.app.database)
    retention.hold(HoldKind.CONVERSATION, ids[0], "a test")
    try:
        at = datetime.now(UTC) + timedelta(days=31)
        assert retention.purge(at, dry_run=True).workflows >= 1
        assert retention.purge(at).workflows >= 1
        kept = {each.workflow_id for each in probe.workflows.list(agent=probe.name, limit=1000).workflows}
        assert kept & set(ids) == {ids[0], ids[2]}
    finally:
        retention.release(HoldKind.CONVERSATION, ids[0])
        probe.workflows.cancel(ids[2])


def test_an_erasure_blanks_ended_workflows(probe: Probe) -> None:
    """An open one is counted, because a replay needs its steps."""
    ended = probe.begin("local", rounds=1, word="secret-of-ada")
    assert probe.workflows.result(ended) == ["secret-of-ada 0"]
    still = probe.workflows.start(f"{probe.name}.approve", {"timeout": 60}).workflow_id
    until(lambda: probe.workflows.get(still).status is WorkflowStatus.WAITING, "the wait")
    rows = erase_rows(probe.app.database, containing="secret-of-ada")
    assert (rows.workflows, rows.open_workflows) == (1, 0)
    found = probe.workflows.get(ended)
    assert (found.input, found.result) == (None, None)
    assert probe.workflows.steps(ended)[0].outcome is None
    given = {"rounds": 1, "word": "secret-of-ada"}
    assert probe.workflows.start(f"{probe.name}.local", given, workflow_id=ended).workflow_id == ended
    with pytest.raises(WorkflowConflict):
        probe.workflows.start(f"{probe.name}.local", {"rounds": 2}, workflow_id=ended)
    assert erase_rows(probe.app.database, agent=probe.name).open_workflows >= 1
    probe.workflows.signal(still, "approval", 1)
    assert probe.workflows.result(still) == 1


async def _by_coroutines(probe: Probe) -> Any:
    workflows = AsyncWorkflows(probe.app)
    started = await workflows.start(f"{probe.name}.adds", {"start": 0})
    return await workflows.result(started.workflow_id, timeout=30)


def test_a_coroutine_waits_for_a_workflow(probe: Probe) -> None:
    """With waooaw_celery.aio.Workflows."""
    assert asyncio.run(_by_coroutines(probe)) == 6
