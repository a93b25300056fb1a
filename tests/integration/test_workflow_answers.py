"""The answers to requests of workflows: recorded, and handed to the process that still has the workflow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support import until
from test_workflow_journal import KNOWN, workflow_id

from waooaw_celery import Agent, AgentApp, create_app
from waooaw_celery.agents import Flow, Workflows
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.workflows.engine.engine import WorkflowEngine
from waooaw_celery.workflows.journal.answers import Answer, AnswerStore, GivenBack
from waooaw_celery.workflows.journal.journal import Journal
from waooaw_celery.workflows.journal.records import Claim, InputKind, Turn, TurnResult
from waooaw_celery.workflows.journal.rows import create
from waooaw_celery.workflows.start import new_row, parse_name
from waooaw_celery.workflows.states import StepStatus, WorkflowStatus

__all__ = ["workflow_id"]

LEASE = timedelta(seconds=15)
GATE = threading.Event()
WAITING = {"status": WorkflowStatus.WAITING.value, "waits_for": "request a", "wake_at": None}


@pytest.fixture(params=["as it comes", "with another driver"])
def store(request: pytest.FixtureRequest, database: Database) -> Iterator[AnswerStore]:
    """What records answers in the database: on PostgreSQL in one statement, or in a transaction of two."""
    found = AnswerStore(database, LEASE)
    if request.param != "as it comes":
        found._pipeline = None
    yield found
    found.close()


def give_back(journal: Journal, id_: str, **columns: Any) -> tuple[Claim, GivenBack]:
    """Claim a workflow as ``me``, and give it back."""
    [claim] = journal.claim("me", KNOWN, ids=[id_])
    turn = Turn(
        workflow_id=id_,
        run=claim.run,
        fence=claim.fence,
        last_change=claim.last_change,
        known_inputs=claim.inputs,
        columns={**WAITING, **columns},
    )
    assert journal.write([turn]) == [TurnResult.WRITTEN]
    return claim, GivenBack(claim.fence, claim.inputs)


def test_an_answer_claims_a_workflow_that_nothing_else_has_changed(
    database: Database, workflow_id: str, store: AnswerStore
) -> None:
    """The claim has a new number and a lease: an older one writes nothing, and no other process claims it."""
    journal = Journal(database)
    claim, given_back = give_back(journal, workflow_id)
    payload = {"result": [datetime(2026, 1, 1, tzinfo=UTC), b"\0", "ä\0"]}
    answer = store.add(workflow_id, f"{workflow_id}-a", payload, "me", given_back)
    assert isinstance(answer, Answer)
    assert (answer.fence, answer.is_new, answer.recorded.number) == (claim.fence + 1, True, claim.inputs + 1)
    [read] = journal.load_inputs(workflow_id, 0).inputs
    assert read == answer.recorded
    assert read.payload == payload
    assert journal.claim("other", KNOWN, ids=[workflow_id]) == []
    late = Turn(workflow_id=workflow_id, run=1, fence=claim.fence, last_change=9, columns=WAITING)
    assert journal.write([late]) == [TurnResult.FENCED]


@pytest.mark.parametrize(
    "what", ["another process", "a claim of this process", "a signal", "a pause", "nothing in memory"]
)
def test_an_answer_claims_nothing_when_something_else_has_happened(
    database: Database, workflow_id: str, store: AnswerStore, what: str
) -> None:
    """It is recorded, and the workflow is claimed and read as usual."""
    journal = Journal(database)
    _, given_back = give_back(journal, workflow_id)
    held: GivenBack | None = given_back
    if what == "another process":
        [other] = journal.claim("other", KNOWN, ids=[workflow_id])
        free = Turn(
            workflow_id=workflow_id,
            run=1,
            fence=other.fence,
            last_change=0,
            known_inputs=other.inputs,
            columns=WAITING,
        )
        assert journal.write([free]) == [TurnResult.WRITTEN]
    elif what == "a claim of this process":
        assert len(Journal(database, lease_seconds=0).claim("me", KNOWN, ids=[workflow_id])) == 1
    elif what == "a signal":
        journal.add_input(workflow_id, InputKind.SIGNAL, "paid", 1, f"{workflow_id}-s")
    elif what == "a pause":
        _, held = give_back(journal, workflow_id, status=WorkflowStatus.PAUSED.value)
    else:
        held = None
    answer = store.add(workflow_id, f"{workflow_id}-a", {"result": 1}, "me", held)
    assert isinstance(answer, Answer)
    assert (answer.fence, answer.is_new) == (None, True)
    [claim] = journal.claim("third", KNOWN, ids=[workflow_id])
    assert f"answer:{workflow_id}-a" in {
        each.input_id for each in journal.load(claim.workflow_id, claim.run).inputs
    }


def test_an_answer_that_comes_twice_is_recorded_once(
    database: Database, workflow_id: str, store: AnswerStore
) -> None:
    """The second one says so."""
    assert [
        answer is not None and answer.is_new
        for answer in (store.add(workflow_id, f"{workflow_id}-a", {"result": n}, "me", None) for n in (1, 2))
    ] == [True, False]
    [read] = Journal(database).load_inputs(workflow_id, 0).inputs
    assert read.payload == {"result": 1}


def test_an_answer_for_a_workflow_that_has_ended_is_dropped(
    database: Database, workflow_id: str, store: AnswerStore
) -> None:
    """So is one for a workflow that does not exist."""
    journal = Journal(database)
    [claim] = journal.claim("me", KNOWN, ids=[workflow_id])
    end = {"status": WorkflowStatus.COMPLETED.value, "owner": None, "lease_until": None}
    turn = Turn(workflow_id=workflow_id, run=1, fence=claim.fence, last_change=0, columns=end)
    assert journal.write([turn]) == [TurnResult.WRITTEN]
    assert store.add(workflow_id, "a", {"result": 1}, "me", None) is None
    assert store.add("nothing", "a", {"result": 1}, "me", None) is None


def test_a_workflow_stays_owned_when_it_is_given_back_too_late(database: Database, workflow_id: str) -> None:
    """An input that this process does not know has arrived, or another process owns it by now."""
    slow, journal = Journal(database, lease_seconds=0), Journal(database)
    [claim] = slow.claim("slow", KNOWN, ids=[workflow_id])
    journal.add_input(workflow_id, InputKind.SIGNAL, "paid", 1, f"{workflow_id}-s")
    turn = Turn(
        workflow_id=workflow_id, run=1, fence=claim.fence, last_change=0, known_inputs=0, columns=dict(WAITING)
    )
    assert slow.write([turn]) == [TurnResult.NEW_INPUTS]
    [new] = journal.claim("other", KNOWN, ids=[workflow_id])
    assert slow.write([turn]) == [TurnResult.FENCED]
    assert new.status is WorkflowStatus.RUNNING


# --- in an engine


async def asks(flow: Flow) -> list[Any]:
    """Ask twice, one after the other."""
    return [await flow.request("asked", "double", {"n": 1}), await flow.request("asked", "double", {"n": 2})]


def open_gate() -> str:
    """A local step that runs until the test lets it end."""
    assert GATE.wait(30)
    return "opened"


async def asks_and_acts(flow: Flow) -> list[Any]:
    """Ask twice and run a local step, all at the same time."""
    asked = [flow.request("asked", "double", {"n": n}) for n in (1, 2)]
    return await flow.gather(*asked, flow.step(open_gate))


@pytest.fixture
def app(redis_url: str, database: Database, tmp_path: Path) -> Iterator[AgentApp]:
    """An application with a workflow whose requests nobody takes: the test answers them."""
    url = database.url.render_as_string(hide_password=False)
    app = create_app(
        "asks",
        broker_url=redis_url,
        result_backend=redis_url,
        waooaw_agents=["asked"],
        waooaw_database_url=url,
        waooaw_spool_folder=str(tmp_path / "spool"),
        waooaw_workflow_poll_seconds=0.05,
        waooaw_workflow_lease_seconds=120.0,  # what waits for the end of a lease fails its test
    )
    with closing(app):
        schema.upgrade(app.database)
        agent = Agent("asker", app)
        agent.workflow(asks)
        agent.workflow(asks_and_acts)
        yield app


@pytest.fixture
def engine(app: AgentApp) -> Iterator[WorkflowEngine]:
    """An engine of the application."""
    found = WorkflowEngine(app, app.workflows)
    found.start()
    yield found
    found.close()


def begin(app: AgentApp, engine: WorkflowEngine, name: str = "asks", requests: int = 1) -> str:
    """Create a workflow, and return its id when it has so many requests."""
    id_ = uuid4().hex
    with app.database.begin("create a workflow") as connection:
        create(connection, [new_row(app, parse_name(f"asker.{name}"), {}, workflow_id=id_)])
    engine.wake(id_)
    until(lambda: name != "asks" or waits(app, id_, requests), "the wait")
    until(lambda: len(Workflows(app).steps(id_)) == requests, "the requests")
    return id_


def waits(app: AgentApp, id_: str, requests: int) -> bool:
    workflows = Workflows(app)
    return workflows.get(id_).status is WorkflowStatus.WAITING and len(workflows.steps(id_)) == requests


def answer(app: AgentApp, engine: WorkflowEngine, id_: str, result: int) -> None:
    """Answer the request that is open."""
    [step] = [each for each in Workflows(app).steps(id_) if each.status is StepStatus.STARTED]
    engine.take_answer(id_, str(step.request_id), {"result": result})


def test_a_workflow_goes_on_with_answers_without_being_read(
    app: AgentApp, engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that has it claims it with each answer; the second request is written with the first answer."""
    id_ = begin(app, engine)
    turns: list[Turn] = []
    write = engine.journal.write
    monkeypatch.setattr(engine.journal, "write", lambda given: turns.extend(given) or write(given))
    for name in ("claim", "load", "load_inputs"):
        original = getattr(engine.journal, name)
        monkeypatch.setattr(engine.journal, name, _refuse_for(id_, original))
    answer(app, engine, id_, 2)
    until(lambda: waits(app, id_, 2), "the second request")
    [together] = [turn for turn in turns if turn.workflow_id == id_ and turn.steps]
    assert {step["status"] for step in together.steps} == {"completed", "started"}
    assert len(together.taken) == 1
    answer(app, engine, id_, 4)
    assert Workflows(app).result(id_, 10) == [2, 4]


def _refuse_for(id_: str, original: Any) -> Any:
    """Return a method of the journal that fails for a workflow: the engine must not need it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        assert id_ not in (*args, *(kwargs.get("ids") or ()))
        return original(*args, **kwargs)

    return call


def test_a_workflow_that_was_forgotten_while_its_answer_was_recorded_is_read_again(
    app: AgentApp, engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer has claimed it, so nobody else would begin it before the lease ends."""
    id_ = begin(app, engine)
    add = engine.journal.answers.add

    def forget_and_add(*args: Any) -> Any:
        async def forget() -> None:
            engine._runs[id_].abandon()

        found = add(*args)
        assert found is not None
        assert found.fence is not None
        assert engine.loop is not None
        asyncio.run_coroutine_threadsafe(forget(), engine.loop).result(10)
        return found

    monkeypatch.setattr(engine.journal.answers, "add", forget_and_add)
    answer(app, engine, id_, 2)
    until(lambda: waits(app, id_, 2), "the second request")
    answer(app, engine, id_, 4)
    assert Workflows(app).result(id_, 10) == [2, 4]


def test_another_process_goes_on_with_an_answer_that_its_owner_has_not_written(
    app: AgentApp, engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function has seen it; then the process is lost before the step is written. The input has it still."""
    id_ = begin(app, engine)
    lost: list[asyncio.Future[TurnResult]] = []

    async def never(_: Turn) -> TurnResult:
        lost.append(asyncio.get_running_loop().create_future())
        return await lost[-1]

    monkeypatch.setattr(engine.writer, "write", never)
    answer(app, engine, id_, 2)
    until(lambda: lost, "the turn that is not written")
    assert engine._main_task is not None
    engine._main_task.cancel()  # it looks for no workflow any more
    engine.journal.give_back(engine.owner)
    other = WorkflowEngine(app, app.workflows)
    other.start()
    try:
        until(lambda: waits(app, id_, 2), "the second request")
        [first, second] = Workflows(app).steps(id_)
        assert (first.outcome, second.status) == (2, StepStatus.STARTED)
        answer(app, other, id_, 4)
        assert Workflows(app).result(id_, 10) == [2, 4]
    finally:
        other.close()
        for each in lost:
            each.get_loop().call_soon_threadsafe(each.set_result, TurnResult.FENCED)


def test_an_answer_that_another_process_has_recorded_is_read_before_the_next_one(
    app: AgentApp, engine: WorkflowEngine
) -> None:
    """This process owns the workflow, because a local step runs, and was not told of the first answer."""
    GATE.clear()
    try:
        id_ = begin(app, engine, "asks_and_acts", requests=2)
        first, second = (str(step.request_id) for step in Workflows(app).steps(id_))
        engine.journal.add_input(id_, InputKind.ANSWER, first, {"result": 1}, f"answer:{first}")
        engine.take_answer(id_, second, {"result": 2})
        until(lambda: len(answered(app, id_)) == 2, "both answers")
    finally:
        GATE.set()
    assert Workflows(app).result(id_, 10) == [1, 2, "opened"]


def answered(app: AgentApp, id_: str) -> list[str]:
    return [step.path for step in Workflows(app).steps(id_) if step.status is StepStatus.COMPLETED]
