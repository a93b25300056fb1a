"""A workflow that waits is given back: nothing that happens at this moment is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support import pass_time, until

from waooaw_celery import Agent, AgentApp, create_app
from waooaw_celery.agents import Flow, Workflows
from waooaw_celery.errors import RequestTimeout
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.clock import now_within
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.workflows.engine.engine import WorkflowEngine
from waooaw_celery.workflows.engine.run import WorkflowRun
from waooaw_celery.workflows.journal.records import InputKind, Loaded, Turn, TurnResult
from waooaw_celery.workflows.journal.rows import add_input, create
from waooaw_celery.workflows.start import new_row, parse_name
from waooaw_celery.workflows.states import WorkflowStatus


async def waits_for_go(flow: Flow) -> str:
    """Wait for a signal."""
    return f"got {await flow.wait_for('go')}"


async def act_slowly() -> str:
    """A local step that takes longer than a workflow that waits stays in memory."""
    await asyncio.sleep(1.0)
    return "acted"


async def waits_and_acts(flow: Flow) -> Any:
    """Wait for a signal, then act."""
    await flow.wait_for("go")
    return await flow.step(act_slowly)


async def asks(flow: Flow) -> Any:
    """Make a request."""
    return await flow.request("asked", "double", {"n": 1})


async def waits_for_others(flow: Flow) -> str:
    """Await something that is no step, longer than a workflow that waits stays in memory."""
    await asyncio.sleep(1.0)
    return "done"


async def waits_for_both(flow: Flow) -> Any:
    """Await something that is no step beside a signal; go on with the first."""
    waiting = asyncio.ensure_future(flow.wait_for("go"))
    await asyncio.sleep(0.2)
    waiting.cancel()
    return "done"


async def waits_for_go_late(flow: Flow) -> Any:
    """Wait for a signal after something that is no step, and beside another signal."""

    async def late() -> Any:
        await asyncio.sleep(0.2)
        return await flow.wait_for("go")

    waiting = asyncio.ensure_future(flow.wait_for("never"))
    got = await flow.gather(late(), flow.sleep(0.01))
    waiting.cancel()
    return got[0]


@pytest.fixture
def app(redis_url: str, database: Database, tmp_path: Path) -> Iterator[AgentApp]:
    """An application with these workflows; what waits for the end of a lease fails its test."""
    app = create_app(
        "waiter",
        broker_url=redis_url,
        result_backend=redis_url,
        waooaw_agents=["asked"],
        waooaw_database_url=database.url.render_as_string(hide_password=False),
        waooaw_spool_folder=str(tmp_path / "spool"),
        waooaw_workflow_poll_seconds=0.05,
        waooaw_workflow_idle_seconds=0.3,
        waooaw_workflow_lease_seconds=120.0,
    )
    with closing(app):
        schema.upgrade(app.database)
        agent = Agent("waiter", app)
        for function in (asks, waits_and_acts, waits_for_go, waits_for_others, waits_for_both, waits_for_go_late):
            agent.workflow(function)
        yield app


@pytest.fixture
def engine(app: AgentApp) -> Iterator[WorkflowEngine]:
    """An engine of the application."""
    found = WorkflowEngine(app, app.workflows)
    found.start()
    yield found
    found.close()


def begin(app: AgentApp, engine: WorkflowEngine, name: str, **options: Any) -> str:
    """Create a workflow, and let the engine look at it."""
    options = {"workflow_id": uuid4().hex} | options
    with app.database.begin("create a workflow") as connection:
        create(connection, [new_row(app, parse_name(f"waiter.{name}"), {}, **options)])
    id_: str = options["workflow_id"]
    engine.wake(id_)
    return id_


def on_loop(engine: WorkflowEngine, call: Callable[[], Any]) -> None:
    """Call a function on the engine's event loop, in one round of it."""

    async def do() -> None:
        call()

    assert engine.loop is not None
    asyncio.run_coroutine_threadsafe(do(), engine.loop).result(10)


def test_a_signal_between_the_decision_to_give_back_and_its_turn_is_taken(
    app: AgentApp, engine: WorkflowEngine
) -> None:
    """The workflow is read in one task, and given back in another: both are about to run."""
    id_ = begin(app, engine, "waits_for_go")
    until(lambda: id_ in engine._runs and engine._runs[id_].given_back, "the wait")
    run = engine._runs[id_]
    wait = run._wait
    decided: list[Loaded] = []

    def wait_and_take() -> None:
        wait()
        if not decided:  # the other task has read the signal meanwhile
            engine.journal.add_input(id_, InputKind.SIGNAL, "go", "it", f"{id_}-go")
            decided.append(engine.journal.load_inputs(id_, 0))
            [signal] = [each for each in decided[0].inputs if each.key == "go"]
            run.receive(signal)

    run._wait = wait_and_take  # type: ignore[method-assign]
    engine.journal.add_input(id_, InputKind.SIGNAL, "nobody waits for it", 1, f"{id_}-other")
    assert Workflows(app).result(id_, 10) == "got it"
    assert decided


def test_a_workflow_that_is_claimed_before_its_give_back_is_known_stays_in_memory(
    app: AgentApp, engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same process has claimed it again by a timer, and learns only then that it was given back."""
    id_ = uuid4().hex
    write = engine.writer.write
    claimed: list[WorkflowRun] = []

    async def write_and_claim(turn: Turn) -> TurnResult:
        result = await write(turn)
        if turn.workflow_id == id_ and turn.known_inputs is not None and not claimed:
            claimed.append(engine._runs[id_])
            engine.journal.add_input(id_, InputKind.SIGNAL, "go", "it", f"{id_}-go")
            assert len(await engine._claims.take([id_])) == 1
        return result

    monkeypatch.setattr(engine.writer, "write", write_and_claim)
    begin(app, engine, "waits_and_acts", workflow_id=id_)
    assert Workflows(app).result(id_, 10) == "acted"
    assert claimed


def test_a_function_that_awaits_something_else_is_not_given_back(app: AgentApp, engine: WorkflowEngine) -> None:
    """Nobody would go on with it: it waits for no step, and only this process knows what it waits for."""
    id_ = begin(app, engine, "waits_for_others")
    assert Workflows(app).result(id_, 10) == "done"


def test_a_deadline_ends_a_function_that_awaits_something_else(app: AgentApp, engine: WorkflowEngine) -> None:
    """Its owner stops it."""
    id_ = begin(app, engine, "waits_for_others", deadline=datetime.now(UTC) + timedelta(seconds=0.3))
    until(lambda: Workflows(app).get(id_).status is WorkflowStatus.TIMED_OUT, "the end")


def test_a_cancel_reaches_a_function_that_awaits_something_else(app: AgentApp, engine: WorkflowEngine) -> None:
    """Another process has recorded it; this one owns the workflow, so nobody else looks."""
    id_ = begin(app, engine, "waits_for_others")
    until(lambda: Workflows(app).get(id_).status is WorkflowStatus.RUNNING, "the function")
    engine.journal.add_input(id_, InputKind.CANCEL, "", {"by": "officer"}, f"{id_}-cancel")
    until(lambda: Workflows(app).get(id_).status is WorkflowStatus.CANCELLED, "the end")


def test_a_workflow_that_is_resumed_before_it_is_paused_goes_on(app: AgentApp, engine: WorkflowEngine) -> None:
    """Both commands are read together. A pause that follows is another one."""
    id_ = begin(app, engine, "waits_for_go")
    until(lambda: id_ in engine._runs and engine._runs[id_].given_back, "the wait")
    with app.database.begin("give commands") as connection:
        for number, kind in enumerate((InputKind.PAUSE, InputKind.RESUME)):
            add_input(connection, now_within(app.database), id_, kind, "", {}, f"{id_}-{number}")
    engine.journal.add_input(id_, InputKind.SIGNAL, "go", "it", f"{id_}-go")
    assert Workflows(app).result(id_, 10) == "got it"


def test_a_workflow_that_is_paused_again_stays_paused(app: AgentApp, engine: WorkflowEngine) -> None:
    """All three commands are read together; the last one counts."""
    id_ = begin(app, engine, "waits_for_go")
    until(lambda: id_ in engine._runs and engine._runs[id_].given_back, "the wait")
    with app.database.begin("give commands") as connection:
        for number, kind in enumerate((InputKind.PAUSE, InputKind.RESUME, InputKind.PAUSE)):
            add_input(connection, now_within(app.database), id_, kind, "", {}, f"{id_}-{number}")
    until(lambda: Workflows(app).get(id_).status is WorkflowStatus.PAUSED, "the pause")
    engine.journal.add_input(id_, InputKind.SIGNAL, "go", "it", f"{id_}-go")
    with pytest.raises(RequestTimeout):
        Workflows(app).result(id_, 1.0)


def test_a_request_that_a_pause_held_up_is_published_after_a_signal_and_a_resume(
    app: AgentApp, engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal lets a process look at the workflow that is paused. It may not forget the request."""
    published: list[bool] = []

    async def never(_: Any, __: Any, *, again: bool) -> None:
        published.append(again)
        await asyncio.sleep(60)

    monkeypatch.setattr(engine.publisher, "request", never)
    id_ = begin(app, engine, "asks")
    until(lambda: published == [False], "the request")
    workflows, journal = Workflows(app), engine.journal
    journal.add_input(id_, InputKind.PAUSE, "", {}, f"{id_}-pause")
    until(lambda: workflows.get(id_).status is WorkflowStatus.PAUSED, "the pause")
    journal.add_input(id_, InputKind.SIGNAL, "go", "it", f"{id_}-go")
    until(lambda: journal.next_wake() is None, "the look at the signal")
    journal.add_input(id_, InputKind.RESUME, "", {}, f"{id_}-resume")
    until(lambda: published == [False, True], "the request")


def test_a_workflow_is_paused_when_its_requests_are_published(
    app: AgentApp, engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever resumes it would publish them at the same time, and one of them would have the other withdrawn."""
    publish, begun, gate, id_ = engine.publisher._publish, threading.Event(), threading.Event(), uuid4().hex

    def publish_late(batch: Any) -> Any:
        if id_ in [request.message.correlation_id for request in batch]:  # not those of earlier tests
            begun.set()
            assert gate.wait(30)
        return publish(batch)

    monkeypatch.setattr(engine.publisher, "_publish", publish_late)
    begin(app, engine, "asks", workflow_id=id_)
    assert begun.wait(30)
    run, workflows = engine._runs[id_], Workflows(app)
    engine.journal.add_input(id_, InputKind.PAUSE, "", {}, f"{id_}-pause")
    try:
        until(lambda: run.ending.begun, "the pause")
        pass_time(0.5)
        assert workflows.get(id_).status is WorkflowStatus.RUNNING
    finally:
        gate.set()
    until(lambda: workflows.get(id_).status is WorkflowStatus.PAUSED, "the pause")
    [step] = workflows.steps(id_)
    assert app.receipts.get(str(step.request_id)).status is MessageStatus.SENT


def test_a_function_that_ends_while_its_workflow_is_given_back_ends_the_workflow(
    app: AgentApp, engine: WorkflowEngine
) -> None:
    """It awaited a step, and something else that came first."""
    id_ = begin(app, engine, "waits_for_both")
    assert Workflows(app).result(id_, 10) == "done"


def test_a_workflow_that_is_claimed_while_it_is_put_down_is_read_again(
    app: AgentApp, engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in memory when it is claimed, and not any more when it was read."""
    id_ = begin(app, engine, "waits_for_go")
    until(lambda: id_ in engine._runs and engine._runs[id_].given_back, "the wait")
    run = engine._runs[id_]
    load = engine.journal.load
    forgotten: list[str] = []

    def load_and_forget(workflow_id: str, *args: Any) -> Loaded:
        if workflow_id == id_ and not forgotten:
            forgotten.append(id_)
            on_loop(engine, run.abandon)
        return load(workflow_id, *args)

    monkeypatch.setattr(engine.journal, "load", load_and_forget)
    engine.journal.add_input(id_, InputKind.SIGNAL, "go", "it", f"{id_}-go")
    assert Workflows(app).result(id_, 10) == "got it"
    assert forgotten


def test_a_signal_is_given_to_a_wait_that_a_replay_reaches_later(app: AgentApp, engine: WorkflowEngine) -> None:
    """The replay reads the signal before the function comes to its wait, which was recorded before."""
    id_ = begin(app, engine, "waits_for_go_late")
    waiting = "signal go#1"
    until(lambda: waiting in [step.path.rpartition("/")[2] for step in Workflows(app).steps(id_)], "the wait")
    until(lambda: id_ not in engine._runs, "the workflow out of memory")
    engine.journal.add_input(id_, InputKind.SIGNAL, "go", "it", f"{id_}-go")
    assert Workflows(app).result(id_, 10) == "it"
