"""Agents of pydantic-ai in workflows of real workers: no model request and no tool call is repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import Broker, until
from test_workflow_crashes import LEASE
from test_workflows import Probe

from waooaw_celery.errors import WorkflowFailed
from waooaw_celery.testing.embedded import end
from waooaw_celery.workflows.states import StepStatus, WorkflowStatus

MODULE = "pydantic_ai_failures_probe"


@pytest.fixture(scope="module")
def shared(ledger_broker: Broker, tmp_path_factory: Any) -> Iterator[Probe]:
    """A worker with the agents, with the ledger in PostgreSQL."""
    effects = tmp_path_factory.mktemp("agents") / "effects"
    with closing(ledger_broker.app()) as app:
        found = Probe(ledger_broker, app, effects, "-P", "solo", module=MODULE, waooaw_workflow_idle_seconds=0.2)
        try:
            yield found
        finally:
            end(found.process)


@pytest.fixture
def probe(shared: Probe) -> Probe:
    """The worker, without effects of another test."""
    shared.effects_file.write_text("")
    return shared


@pytest.fixture
def mortal(ledger_broker: Broker, tmp_path: Path) -> Iterator[Probe]:
    """A worker that a test may kill."""
    with closing(ledger_broker.app()) as app:
        found = Probe(ledger_broker, app, tmp_path / "effects", "-P", "solo", module=MODULE, **LEASE)
        try:
            yield found
        finally:
            end(found.process)


def waiting(probe: Probe, name: str, step: str = "signal", **given: Any) -> str:
    """Begin a workflow, and return its id when it waits."""
    id_ = probe.begin(name, **given)
    until(lambda: _waits(probe, id_, step), f"the wait of {name}")
    return id_


def _waits(probe: Probe, id_: str, step: str) -> bool:
    found = probe.workflows.get(id_)
    assert not found.status.final, found.error
    return step in str(found.waits_for) and found.status is WorkflowStatus.WAITING


def replace(probe: Probe) -> None:
    """Kill the worker, and start another one."""
    probe.process.kill()
    probe.process.wait()
    probe.start(f"next-{len(probe.effects())}")


def paths(probe: Probe, id_: str) -> set[str]:
    """Return the steps of a workflow."""
    return {step.path for step in probe.workflows.steps(id_)}


@pytest.mark.slow
def test_a_kill_between_two_model_requests_repeats_no_call(mortal: Probe) -> None:
    """The responses and the results of tools, which ran at the same time, come from the journal."""
    id_ = waiting(mortal, "researches")
    before = mortal.effects()
    assert sorted(before) == ["model 0", "model 1", "tool a", "tool b", "tool c"]
    assert before != sorted(before), "the tools were to end in another order than they began"
    replace(mortal)
    mortal.workflows.signal(id_, "answer", "yes")
    until(lambda: _waits(mortal, id_, "ask call-ask#2"), "the second run of the agent")
    replace(mortal)
    mortal.workflows.signal(id_, "answer", "no")
    found = mortal.workflows.result(id_)
    assert found["output"] == "found ['tool a', 'tool b', 'tool c', 'more? yes 42']"
    assert found["again"] == "found ['tool a', 'tool b', 'tool c', 'more? no 42']"
    assert found["requests"] == 3
    assert Counter(mortal.effects()) == {
        "model 0": 1,  # the second run begins after it
        **dict.fromkeys(("model 1", "model 2", "tool a", "tool b", "tool c"), 2),
    }


@pytest.mark.slow
def test_only_the_request_that_ran_is_repeated_after_a_kill(mortal: Probe) -> None:
    """It had no outcome yet."""
    id_ = mortal.begin("waits_for_model")
    until(lambda: "model 1" in mortal.effects(), "the second request")
    replace(mortal)
    until(lambda: mortal.effects().count("model 1") == 2, "the second request in another process")
    Path(f"{mortal.effects_file}.gate").touch()
    assert mortal.workflows.result(id_) == "done"
    assert Counter(mortal.effects()) == {"model 0": 1, "tool note": 1, "model 1": 2}


@pytest.mark.slow
def test_an_event_handler_gets_the_stream_once(mortal: Probe) -> None:
    """The parts of a response arrive within the step of the request; a replay hands over nothing again."""
    id_ = waiting(mortal, "streams")
    expected = [
        *("model 0", "event part_start", "event part_end"),
        *("event function_tool_call", "tool x", "event function_tool_result"),
        *("model 1", "event part_start", "event final_result", "event part_delta", "event part_delta"),
        "event part_end",
    ]
    assert mortal.effects() == expected
    replace(mortal)
    mortal.workflows.signal(id_, "go on")
    assert mortal.workflows.result(id_) == "one two three"
    assert mortal.effects() == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["approves", "approves_inline"])
def test_a_person_approves_a_tool_after_a_kill(mortal: Probe, name: str) -> None:
    """The call that was approved is made, and the model hears that the other one was denied."""
    id_ = waiting(mortal, name)
    replace(mortal)
    mortal.workflows.signal(id_, "approval", ["call-x"])
    assert mortal.workflows.result(id_).startswith("deleted ['delete x', ")
    assert mortal.effects() == ["model 0", "delete x", "model 1"]


@pytest.mark.slow
def test_a_token_names_the_signal_that_answers(mortal: Probe) -> None:
    """RequestInput hands it out once. A replay ends no span of what it did not do."""
    id_ = waiting(mortal, "is_answered")
    mails = [line.removeprefix("mail ") for line in mortal.effects() if line.startswith("mail")]
    [(workflow_id, _, signal)] = [token.rpartition("/") for token in mails]
    before = Counter(mortal.effects())
    assert (workflow_id, before["span chat function:respond:"]) == (id_, 1)
    replace(mortal)
    mortal.workflows.signal(id_, signal, {"approvals": {"call-x": True, "call-y": False}})
    assert mortal.workflows.result(id_).startswith("deleted ['delete x', ")
    more = Counter(mortal.effects()) - before
    assert (more["mail"], more["model 1"], more["span chat function:respond:"]) == (0, 1, 1)


@pytest.mark.slow
def test_the_tools_of_a_server_are_listed_and_called_once(mortal: Probe) -> None:
    """A server that speaks MCP. A replay does not start it."""
    pytest.importorskip("fastmcp")
    id_ = waiting(mortal, "uses_server")
    first = mortal.effects()
    assert len([line for line in first if line.startswith("server")]) == 1
    replace(mortal)
    mortal.workflows.signal(id_, "go on", "waited")
    assert mortal.workflows.result(id_) == "sunny ['weather Rome', 'weather Oslo', 'waited']"
    assert mortal.effects() == [*first, "model 2"]
    assert any("get_tools" in path for path in paths(mortal, id_))


def test_an_agent_that_waits_leaves_memory(probe: Probe) -> None:
    """Its function is put down, and is replayed when the signal comes. A cancelled one ends."""
    ids = [waiting(probe, "is_put_down") for _ in range(2)]
    until(lambda: probe.effects().count("put down") == 2, "the end of the functions")
    probe.workflows.signal(ids[0], "go on", "now")
    assert probe.workflows.result(ids[0]) == "done ['now']"
    probe.workflows.cancel(ids[1])
    with pytest.raises(WorkflowFailed, match="cancelled"):
        probe.workflows.result(ids[1])
    assert Counter(probe.effects())["model 0"] == 2


def test_a_model_request_is_left_when_its_workflow_is_cancelled(probe: Probe) -> None:
    """Its thread ends by itself."""
    id_ = probe.begin("waits_for_model")
    until(lambda: "model 1" in probe.effects(), "the second request")
    probe.workflows.cancel(id_)
    with pytest.raises(WorkflowFailed, match="cancelled"):
        probe.workflows.result(id_, 10)
    Path(f"{probe.effects_file}.gate").touch()


def test_the_model_hears_that_a_tool_asks_for_another_call(probe: Probe) -> None:
    """ModelRetry keeps its meaning. Two calls with one id are two steps."""
    id_ = probe.begin("retries_model")
    assert probe.workflows.result(id_) == "True 2"
    assert probe.effects() == ["model 0", "tool half 3", "model 1", "tool half 4", "model 2"]
    assert {f"correcting tool half same-id#{number}" for number in (1, 2)} <= paths(probe, id_)


@pytest.mark.slow
def test_the_error_of_a_tool_is_the_same_in_a_replay(mortal: Probe) -> None:
    """It is retried by its policy, and is not raised again by calling the tool."""
    id_ = waiting(mortal, "raises")
    replace(mortal)
    mortal.workflows.signal(id_, "go on")
    kind, cause, text = mortal.workflows.result(id_)
    assert (kind, cause) == ("StepFailed", "ZeroDivisionError")
    assert "it went wrong" in text
    assert mortal.effects() == ["model 0", *["tool explode"] * 3]


def test_a_model_request_is_retried_by_its_policy(probe: Probe) -> None:
    """The step has one outcome, and three attempts."""
    id_ = probe.begin("model_fails", times=2, attempts=3)
    assert probe.workflows.result(id_) == ["at last"]
    [step] = probe.workflows.steps(id_)
    assert (step.status, step.attempts) == (StepStatus.COMPLETED, 3)


@pytest.mark.slow
def test_the_error_of_a_model_keeps_its_class_and_its_fields(mortal: Probe) -> None:
    """Also in a replay: code that handles it runs the same."""
    id_ = waiting(mortal, "model_fails", times=5, attempts=2)
    replace(mortal)
    mortal.workflows.signal(id_, "go on")
    assert mortal.workflows.result(id_) == ["ModelHTTPError", 503, "probe", {"reason": "overloaded"}]
    assert mortal.effects() == ["model", "model"]


def test_limits_and_timeouts_are_enforced(probe: Probe) -> None:
    """A limit of requests counts recorded ones; a tool that takes too long is left."""
    assert probe.run("is_limited") == "UsageLimitExceeded"
    assert probe.run("times_out") == "StepTimeout"
    assert probe.run("leaves_thread") == "StepTimeout"


def test_a_tool_that_makes_steps_within_its_step_is_refused(probe: Probe) -> None:
    """The error says how to let it run in the workflow's function. Another agent may run within the step."""
    with pytest.raises(WorkflowFailed, match=r"metadata=\{'waooaw': False\}"):
        probe.run("misuses")
    id_ = probe.begin("delegates")
    assert probe.workflows.result(id_) == "delegated ['helped []']"
    assert len(paths(probe, id_)) == 3


def test_a_plain_function_cannot_run_an_agent(probe: Probe) -> None:
    """The error says that an async def is needed."""
    with pytest.raises(WorkflowFailed, match="async def"):
        probe.run("is_plain")
