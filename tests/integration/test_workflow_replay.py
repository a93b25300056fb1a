"""Random workflows that are crashed at each write of their journal give the same result as without a crash."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import update
from support import lone_database, until

from waooaw_celery import Agent, AgentApp, create_app
from waooaw_celery.agents import Flow, Workflows
from waooaw_celery.errors import StepFailed
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.workflow_models import WorkflowRow
from waooaw_celery.workflows.engine.engine import WorkflowEngine
from waooaw_celery.workflows.journal.records import Turn, TurnResult
from waooaw_celery.workflows.journal.rows import create
from waooaw_celery.workflows.journal.writer import TurnWriter
from waooaw_celery.workflows.start import new_row, parse_name
from waooaw_celery.workflows.states import StepStatus

#: What each local step of the running workflow was called with.
effects: Counter[str] = Counter()


def act(text: str) -> str:
    """A local step."""
    effects[text] += 1
    return f"did {text}"


def refuse(text: str) -> None:
    """A local step that fails."""
    effects[text] += 1
    raise ValueError(text)


async def run_program(flow: Flow, program: list[Any]) -> list[Any]:
    """Run the operations of a program, and return what each gave."""
    return [await run_operation(flow, *operation) for operation in program]


async def run_operation(flow: Flow, kind: str, value: Any) -> Any:
    """Run one operation."""
    if kind == "step":
        return await flow.step(act, value)
    if kind == "fails":
        try:
            await flow.step(refuse, value)
        except StepFailed as error:
            return error.message
    if kind == "sleep":
        return await flow.sleep(value)
    if kind == "gather":
        return await flow.gather(*(run_program(flow, program) for program in value))
    if kind == "map":
        return await flow.map(lambda item: flow.step(act, item), value, limit=2)
    if kind == "race":
        return list(await flow.race(flow.sleep(60), run_program(flow, value)))
    if kind == "undo":
        flow.compensate(act, value)
    return None


names = st.integers(0, 10_000).map(lambda number: f"n{number}")
leaves = st.one_of(
    st.tuples(st.just("step"), names),
    st.tuples(st.just("fails"), names),
    st.tuples(st.just("sleep"), st.just(0.001)),
    st.tuples(st.just("map"), st.lists(names, max_size=3)),
    st.tuples(st.just("undo"), names),
)
programs = st.recursive(
    st.lists(leaves, min_size=1, max_size=3),
    lambda inner: st.lists(
        st.one_of(
            leaves,
            st.tuples(st.just("gather"), st.lists(inner, min_size=1, max_size=3)),
            st.tuples(st.just("race"), inner),
        ),
        min_size=1,
        max_size=3,
    ),
    max_leaves=8,
)


class CrashingWriter(TurnWriter):
    """Writes some transactions; then its process is lost, and nothing is written any more."""

    def __init__(self, journal: Any, writes: int) -> None:
        super().__init__(journal)
        self.left, self.has_crashed = writes, False
        self._lost: list[asyncio.Future[None]] = []

    async def write(self, turn: Turn) -> TurnResult:
        """Write a turn, or never return."""
        if self.left <= 0:
            self.has_crashed = True
            self._lost.append(asyncio.get_running_loop().create_future())
            await self._lost[-1]
        self.left -= 1
        return await super().write(turn)

    def forget(self) -> None:
        """End the writes that never return."""
        for future in self._lost:
            future.cancel()


@pytest.fixture(params=["sqlite", "postgresql"])
def app(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> Iterator[AgentApp]:
    """An application whose agent has the workflow of all programs, with a ledger of its own."""
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    if request.param == "postgresql":
        with lone_database(request.getfixturevalue("postgres_url")) as found:
            yield from _app(found, redis_url, tmp_path)
    else:
        yield from _app(url, redis_url, tmp_path)


def _app(url: str, redis_url: str, folder: Path) -> Iterator[AgentApp]:
    app = create_app(
        "replay",
        broker_url=redis_url,
        result_backend=redis_url,
        waooaw_database_url=url,
        waooaw_spool_folder=str(folder / "spool"),
        waooaw_workflow_poll_seconds=0.05,
    )
    with closing(app):
        schema.upgrade(app.database)
        Agent("replayer", app).workflow(run_program)
        yield app


def run_once(
    app: AgentApp, workflow_id: str, program: Any, crashes: list[int], name: str = "replayer.run_program"
) -> tuple[Any, int]:
    """Run a program with processes that are lost after so many writes; return its result and all its writes."""
    effects.clear()
    target = parse_name(name)
    row = new_row(app, target, {"program": program}, workflow_id=workflow_id)
    with app.database.begin("create a workflow") as connection:
        create(connection, [row])
    workflows = Workflows(app)
    written = 0
    for writes in [*crashes, 1_000_000]:
        engine = WorkflowEngine(app, app.workflows)
        writer = CrashingWriter(engine.journal, writes)
        engine.writer = writer
        engine.start()
        until(
            lambda writer=writer: writer.has_crashed or workflows.get(workflow_id).status.final,  # type: ignore[misc]
            "a crash or the end",
        )
        written += writes - writer.left
        lose(engine, writer)
        if workflows.get(workflow_id).status.final:
            break
        with app.database.begin("end the lease of a lost process") as connection:
            values = {"owner": None, "takeovers": WorkflowRow.takeovers + 1}
            connection.execute(update(WorkflowRow).values(values))
    return workflows.result(workflow_id, 1), written


def lose(engine: WorkflowEngine, writer: CrashingWriter) -> None:
    """Let an engine do nothing any more, as if its process was killed."""
    main, loop = engine._main_task, engine._loop
    assert main is not None
    assert loop is not None
    main.cancel()

    async def stop() -> None:
        engine._closing = True
        for run in list(engine._runs.values()):
            run.abandon()
        writer.forget()

    asyncio.run_coroutine_threadsafe(stop(), loop).result(10)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_crash_at_any_write_changes_no_result(app: AgentApp) -> None:
    """Each recorded step has one outcome; a step whose record was lost is called once more."""
    number = 0

    @settings(
        max_examples=8,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(programs)
    def check(program: list[Any]) -> None:
        nonlocal number
        number += 1
        expected, writes = run_once(app, f"whole-{number}", program, [])
        once = dict(effects)
        for crash in range(writes):
            id_ = f"crashed-{number}-{crash}"
            result, _ = run_once(app, id_, program, [crash])
            assert result == expected
            assert set(effects) == set(once)
            assert all(count <= 2 * once[text] for text, count in effects.items())
            steps = Workflows(app).steps(id_)
            assert {step.status for step in steps} <= {
                StepStatus.COMPLETED,
                StepStatus.FAILED,
                StepStatus.REGISTERED,
                StepStatus.STARTED,  # the sleep of a branch that lost its race
            }

    check()


@pytest.mark.slow
def test_two_crashes_in_a_row_change_no_result(app: AgentApp) -> None:
    """The second one while the first is made good."""
    program = [
        ["step", "a"],
        ["gather", [[["step", "b"], ["fails", "c"]], [["sleep", 0.001], ["map", ["d", "e", "f"]]]]],
        ["race", [["step", "g"]]],
        ["step", "h"],
    ]
    expected, writes = run_once(app, "whole", program, [])
    for first in range(0, writes, 2):
        result, _ = run_once(app, f"twice-{first}", program, [first, 1])
        assert result == expected
