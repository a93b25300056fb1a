"""Workflows in real workers: steps, waits, branches, compensations, children, signals, and their commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support import Broker, until

from waooaw_celery import AgentApp, MessageAuditTrail, Priority
from waooaw_celery.errors import (
    InvalidMessage,
    RequestTimeout,
    UnknownMethod,
    UnknownWorkflow,
    WorkflowConflict,
    WorkflowEnded,
    WorkflowFailed,
)
from waooaw_celery.testing.embedded import end
from waooaw_celery.workflows.states import WorkflowStatus
from waooaw_celery.workflows.workflows import Workflows


class Probe:
    """The worker of the probe agent, and what it has done."""

    def __init__(
        self,
        broker: Broker,
        app: AgentApp,
        effects: Path,
        *options: str,
        module: str = "workflow_probe",
        **settings: Any,
    ) -> None:
        self.broker, self.app, self.effects_file = broker, app, effects
        self._module = module
        self.name = broker.name()
        self.workflows = Workflows(app)
        self._options = options
        self._settings = {"waooaw_workflow_poll_seconds": 0.2} | settings
        effects.touch()
        self.start()

    def start(self, node: str | None = None) -> Any:
        self.process = self.broker.start(
            self.name,
            self.app,
            *self._options,
            node=node,
            module=self._module,
            env={"PROBE_EFFECTS": str(self.effects_file)},
            **self._settings,
        )
        return self.process

    def run(self, name: str, wait_seconds: float = 30, **given: Any) -> Any:
        started = self.workflows.start(f"{self.name}.{name}", given)
        return self.workflows.result(started.workflow_id, wait_seconds)

    def begin(self, name: str, **given: Any) -> str:
        return self.workflows.start(f"{self.name}.{name}", given).workflow_id

    def effects(self) -> list[str]:
        return self.effects_file.read_text().splitlines()


@pytest.fixture(scope="module", params=["solo", "prefork"])
def probe(request: pytest.FixtureRequest, ledger_broker: Broker, tmp_path_factory: Any) -> Iterator[Probe]:
    """A worker in each pool, with the ledger in PostgreSQL."""
    effects = tmp_path_factory.mktemp("workflows") / "effects"
    with closing(ledger_broker.app()) as app:
        found = Probe(ledger_broker, app, effects, "-P", request.param, "-c", "2")
        try:
            yield found
        finally:
            end(found.process)


def test_requests_follow_each_other(probe: Probe) -> None:
    """Each answer is used by the next request, and the result is the sum."""
    assert probe.run("adds", start=1) == 7


def test_a_local_step_is_called_once(probe: Probe) -> None:
    """Its results are recorded in order."""
    assert probe.run("local", rounds=5, word="once") == [f"once {n}" for n in range(5)]
    assert [line for line in probe.effects() if line.startswith("once")] == [f"once {n}" for n in range(5)]


def test_a_plain_function_is_a_workflow(probe: Probe) -> None:
    """Its steps block, and its branches are functions."""
    found = probe.run("blocking", n=3)
    assert found == {"first": 6, "both": [20, ["one", 40]], "mapped": ["m1", "m2"]}


def test_the_input_becomes_a_dataclass(probe: Probe) -> None:
    """A wrong input fails the workflow and names the argument."""
    assert probe.run("order", order={"item": "tea", "count": 2}) == "2 tea"
    with pytest.raises(WorkflowFailed, match="count"):
        probe.run("order", order={"item": "tea", "count": "many"})


def test_a_new_workflow_is_described_as_it_is_stored(probe: Probe) -> None:
    """What ``start`` returns is what can be read, until a worker begins it: this one waits for a version."""
    given = {"rounds": 1, "texts": ["ä", 1.5, None]}
    started = probe.workflows.start(f"{probe.name}.local", given, version=9, deadline=timedelta(hours=1))
    assert started == probe.workflows.get(started.workflow_id)
    assert (started.status, started.steps) == (WorkflowStatus.PENDING, 0)
    probe.workflows.cancel(started.workflow_id)


def test_a_signal_is_kept_until_it_is_waited_for(probe: Probe) -> None:
    """It may arrive before the workflow has begun. A workflow that has ended takes none."""
    id_ = probe.begin("approve")
    until(lambda: probe.workflows.get(id_).status is WorkflowStatus.WAITING, "the wait")
    assert probe.workflows.get(id_).progress == {"asked": True}
    assert "approval" in str(probe.workflows.get(id_).waits_for)
    probe.workflows.signal(id_, "other", 1)
    probe.workflows.signal(id_, "approval", {"by": "ada"}, signal_id=f"signal-{id_}")
    assert probe.workflows.result(id_) == {"by": "ada"}
    assert probe.workflows.status(id_) is WorkflowStatus.COMPLETED
    with pytest.raises(UnknownWorkflow):
        probe.workflows.status("nowhere")
    with pytest.raises(WorkflowEnded):
        probe.workflows.signal(id_, "approval")
    with pytest.raises(UnknownWorkflow):
        probe.workflows.signal("nowhere", "approval")


def test_a_wait_times_out(probe: Probe) -> None:
    """The workflow fails, because it does not catch the error."""
    with pytest.raises(WorkflowFailed) as raised:
        probe.run("approve", timeout=0.2)
    assert (raised.value.type, raised.value.status) == ("SignalTimeout", "failed")


def test_a_sleep_and_the_time_are_recorded(probe: Probe) -> None:
    """A longer sleep than the idle time takes the workflow out of memory."""
    assert probe.run("naps", seconds=0.3).startswith("True 0.")


def test_what_was_done_is_undone_in_reverse_order(probe: Probe) -> None:
    """When a workflow fails."""
    before = len(probe.effects())
    with pytest.raises(WorkflowFailed) as raised:
        probe.run("saga", end="fail")
    assert (raised.value.status, raised.value.type) == ("compensated", "RemoteError")
    assert probe.effects()[before:] == ["create a", "create b", "delete b", "delete a"]


@pytest.mark.parametrize("compensate", [True, False])
def test_a_workflow_is_cancelled(probe: Probe, compensate: bool) -> None:
    """Its compensations are carried out, unless that is not wanted."""
    before = len(probe.effects())
    id_ = probe.begin("saga", end="wait")
    until(lambda: "signal" in str(probe.workflows.get(id_).waits_for), "the wait for the signal")
    probe.workflows.cancel(id_, compensate=compensate, by="ada")
    with pytest.raises(WorkflowFailed, match="cancelled by ada") as raised:
        probe.workflows.result(id_)
    assert raised.value.status == "cancelled"
    undone = ["delete b", "delete a"] if compensate else []
    assert probe.effects()[before:] == ["create a", "create b", *undone]


def test_the_first_branch_of_a_race_wins(probe: Probe) -> None:
    """The others are cancelled."""
    assert probe.run("races") == [1, 8]


@pytest.mark.parametrize("limit", [None, 5])
def test_many_requests_at_once(probe: Probe, limit: int | None) -> None:
    """All answers are counted once."""
    assert probe.run("fans_out", count=50, limit=limit) == 2 * sum(range(50))


def test_requests_and_steps_are_retried(probe: Probe, tmp_path: Path) -> None:
    """As their policies say."""
    before = len(probe.effects())
    assert probe.run("retries", path=str(tmp_path / "one")) == "done"
    assert probe.run("step_retries", path=str(tmp_path / "two")) == "done"
    assert probe.effects()[before:] == ["attempt", "attempt", "local attempt", "local attempt"]


def test_a_message_and_an_event_are_sent_once(probe: Probe) -> None:
    """Their ids are the results, and they belong to the conversation of the workflow."""
    id_ = probe.begin("tells", word="once")
    sent, published = probe.workflows.result(id_)
    assert sent != published
    wanted = {f"heard once in {id_}", "noticed told.all once"}
    until(lambda: wanted <= set(probe.effects()), "the message and the event")
    assert sum("once" in line and line.split()[0] in ("heard", "noticed") for line in probe.effects()) == 2


def test_agents_are_chosen_by_capability(probe: Probe) -> None:
    """The step records whom it asked, and the ledger the capability."""
    id_ = probe.begin("by_capability", n=21)
    doubled, sent, error = probe.workflows.result(id_)
    assert (doubled, error) == (42, "NoAgentAvailable")
    first = probe.workflows.steps(id_)[0]
    trail = MessageAuditTrail(probe.app.ledger)
    asked = trail.receipt(str(first.request_id))
    assert (asked.receipt.to_agent, asked.capability) == (probe.name, "double@>=2")
    assert trail.receipt(sent).capability == "hear"
    until(lambda: f"heard by capability in {id_}" in probe.effects(), "the message")


def test_wrong_arguments_of_a_request_fail_its_step(probe: Probe) -> None:
    """They are checked before the request is sent."""
    with pytest.raises(WorkflowFailed, match="InvalidArguments") as raised:
        probe.run("adds", start=1, wrong=True)
    assert raised.value.type == "InvalidArguments"


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), -1.0])
def test_a_wait_for_a_result_has_an_end(probe: Probe, timeout: float) -> None:
    """A timeout that would never end, or cannot begin, is refused."""
    id_ = probe.begin("local", rounds=1)
    with pytest.raises(InvalidMessage, match="seconds or a timedelta"):
        probe.workflows.result(id_, timeout)


def test_a_large_result_is_recorded(probe: Probe) -> None:
    """A step may return 10 MB."""
    assert probe.run("large", size=10_000_000) == 10_000_000


def test_a_child_reports_to_its_parent(probe: Probe) -> None:
    """Its result is the outcome of a step, and so is its error."""
    id_ = probe.begin("parent")
    assert probe.workflows.result(id_) == "done"
    [child] = probe.workflows.list(parent_id=id_).workflows
    assert (child.name, child.conversation_id) == (f"{probe.name}.saga", id_)
    with pytest.raises(WorkflowFailed) as raised:
        probe.run("parent", fails=True)
    assert raised.value.type == "WorkflowFailed"


def test_a_workflow_begins_again_as_new(probe: Probe) -> None:
    """It keeps its id and loses its steps."""
    id_ = probe.begin("counts_down", n=3)
    assert probe.workflows.result(id_) == "zero"
    found = probe.workflows.get(id_)
    assert (found.run, found.input, found.steps) == (4, {"n": 0}, 1)
    assert len(probe.workflows.steps(id_, run=2)) == 1


def test_a_step_that_takes_too_long_times_out(probe: Probe) -> None:
    """The function catches a TimeoutError."""
    assert probe.run("timeouts") == "StepTimeout"


def test_starting_is_idempotent(probe: Probe) -> None:
    """The same id with the same input is the same workflow; with another input it is refused."""
    given, id_ = {"rounds": 1, "word": "idempotent"}, f"{probe.name}-idempotent"
    first = probe.workflows.start(f"{probe.name}.local", given, workflow_id=id_, priority=Priority.HIGH)
    again = probe.workflows.start(f"{probe.name}.local", given, workflow_id=id_)
    assert first.workflow_id == again.workflow_id == id_
    assert probe.workflows.result(id_) == ["idempotent 0"]
    assert probe.effects().count("idempotent 0") == 1
    with pytest.raises(WorkflowConflict):
        probe.workflows.start(f"{probe.name}.local", {"rounds": 2}, workflow_id=id_)
    with pytest.raises(UnknownMethod):
        probe.workflows.start(f"{probe.name}.nothing")
    with pytest.raises(InvalidMessage, match="input"):
        probe.workflows.start(f"{probe.name}.local", [1])  # type: ignore[arg-type]  # that is the test


def test_a_workflow_is_paused_and_resumed(probe: Probe) -> None:
    """A signal that arrives meanwhile waits."""
    id_ = probe.begin("approve")
    until(lambda: probe.workflows.get(id_).status is WorkflowStatus.WAITING, "the wait")
    probe.workflows.pause(id_)
    until(lambda: probe.workflows.get(id_).status is WorkflowStatus.PAUSED, "the pause")
    probe.workflows.signal(id_, "approval", 7)
    with pytest.raises(RequestTimeout, match="paused"):
        probe.workflows.result(id_, timeout=1)
    probe.workflows.resume(id_)
    assert probe.workflows.result(id_) == 7


def test_the_newest_version_begins_and_the_old_one_goes_on(probe: Probe) -> None:
    """A version can be chosen too."""
    ids = [probe.workflows.start(f"{probe.name}.versioned", version=version).workflow_id for version in (None, 1)]
    for id_ in ids:
        probe.workflows.signal(id_, "go")
    assert [probe.workflows.result(id_) for id_ in ids] == ["2", "1"]


def test_a_deadline_ends_a_workflow(probe: Probe) -> None:
    """It timed out."""
    started = probe.workflows.start(f"{probe.name}.approve", deadline=timedelta(seconds=0.5))
    with pytest.raises(WorkflowFailed) as raised:
        probe.workflows.result(started.workflow_id)
    assert raised.value.status == "timed out"


def test_a_failed_workflow_is_retried_from_a_step(probe: Probe, tmp_path: Path) -> None:
    """The steps before keep their outcomes. A fork begins another workflow."""
    path = str(tmp_path / "exists")
    id_ = probe.begin("fails_once", path=path)
    with pytest.raises(WorkflowFailed, match="not yet"):
        probe.workflows.result(id_)
    probe.workflows.retry(id_)
    assert probe.workflows.result(id_) == "done"
    assert probe.workflows.get(id_).run == 2
    assert probe.effects().count(f"before {path}") == 1
    fork = probe.workflows.fork(id_)
    assert probe.workflows.result(fork.workflow_id) == "done"
    assert probe.workflows.get(fork.workflow_id).forked_from == id_
    assert probe.effects().count(f"before {path}") == 2


def test_a_changed_function_is_stuck_and_named(probe: Probe) -> None:
    """The error names the recorded step, and the new one with its line."""
    id_ = probe.begin("changes")
    until(lambda: probe.workflows.get(id_).status is WorkflowStatus.WAITING, "the wait")
    with probe.effects_file.open("a") as file:
        file.write("changed\n")
    probe.workflows.pause(id_)  # takes it out of memory
    until(lambda: probe.workflows.get(id_).status is WorkflowStatus.PAUSED, "the pause")
    probe.workflows.resume(id_)
    until(lambda: probe.workflows.get(id_).status is WorkflowStatus.STUCK, "the stuck workflow")
    error = probe.workflows.get(id_).error
    assert error["type"] == "WorkflowChanged"
    assert "same" in error["message"]
    assert "other" in error["message"]
    assert "workflow_probe.py:" in error["message"]
    probe.workflows.cancel(id_)
    with pytest.raises(WorkflowFailed):
        probe.workflows.result(id_)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_branch_that_a_new_version_adds_is_run(probe: Probe, at: int) -> None:
    """Wherever it stands, the recorded steps keep their outcomes, and none goes to another."""
    probe.effects_file.write_text("")
    id_ = probe.begin("gains_a_branch", at=at)
    until(lambda: probe.workflows.get(id_).status is WorkflowStatus.WAITING, "the wait")
    probe.workflows.pause(id_)  # takes it out of memory
    until(lambda: probe.workflows.get(id_).status is WorkflowStatus.PAUSED, "the pause")
    with probe.effects_file.open("a") as file:
        file.write("changed\n")
    probe.workflows.resume(id_)
    probe.workflows.signal(id_, "go", "went")
    expected = ["first", "went"]
    expected.insert(at, "added")
    assert probe.workflows.result(id_) == expected
    assert probe.effects().count("first") == 1


def test_statistics_count_by_status(probe: Probe) -> None:
    """And by function."""
    probe.run("timeouts")
    found = probe.workflows.statistics(f"{probe.name}.timeouts")
    assert found.by_status == {"completed": found.total}
    assert found.failure_rate == 0
