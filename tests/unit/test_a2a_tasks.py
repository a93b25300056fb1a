"""Tasks of ours as those of A2A."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from a2a.types import TaskState as A2AState

from waooaw_celery.edges.a2a.tasks import EndedTasks, a2a_task
from waooaw_celery.edges.gateway.task import TaskError, TaskInfo, TaskState

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def task(state: TaskState, **fields: Any) -> TaskInfo:
    given: dict[str, Any] = {
        "task_id": "t",
        "agent": "weather",
        "method": "forecast",
        "is_workflow": False,
        "conversation_id": "c",
        "from_agent": "portal",
        "arguments": {"city": "Turin"},
        "result": None,
        "error": None,
        "waits_for": None,
        "progress": None,
        "created_at": NOW,
        "updated_at": NOW,
    }
    return TaskInfo(**{**given, "state": state, **fields})


@pytest.mark.parametrize(
    ("ours", "state", "says"),
    [
        (task(TaskState.SUBMITTED), A2AState.TASK_STATE_SUBMITTED, None),
        (task(TaskState.WORKING, progress="half"), A2AState.TASK_STATE_WORKING, "half"),
        (task(TaskState.INPUT_REQUIRED, waits_for="approval"), A2AState.TASK_STATE_INPUT_REQUIRED, "approval"),
        (task(TaskState.COMPLETED, result="x"), A2AState.TASK_STATE_COMPLETED, None),
        (
            task(TaskState.FAILED, error=TaskError(type="ValueError", message="no")),
            A2AState.TASK_STATE_FAILED,
            "ValueError: no",
        ),
        (task(TaskState.EXPIRED), A2AState.TASK_STATE_FAILED, "the time of the task was over"),
        (task(TaskState.CANCELLED), A2AState.TASK_STATE_CANCELED, None),
    ],
)
def test_each_state_is_one_of_the_protocol(ours: TaskInfo, state: A2AState, says: str | None) -> None:
    """With a sentence where there is something to say."""
    found = a2a_task(ours)
    assert found.status.state == state
    if says is None:
        assert not found.status.HasField("message")
    else:
        assert says in found.status.message.parts[0].text


def test_a_task_has_its_parts_its_result_and_what_it_was_called_with() -> None:
    """As much of its history as is wanted, and its artifacts if they are."""
    ended = task(TaskState.COMPLETED, result="all", parts=["a", "b"])
    found = a2a_task(ended)
    assert [(each.artifact_id, [part.text for part in each.parts]) for each in found.artifacts] == [
        ("stream", ["a", "b"]),
        ("result", ["all"]),
    ]
    assert len(found.history) == 1
    assert not a2a_task(ended, 0).history
    assert not a2a_task(ended, artifacts=False).artifacts
    assert not a2a_task(task(TaskState.COMPLETED, arguments=None)).history  # it was erased


def test_an_end_that_was_told_is_not_taken_back() -> None:
    """The ledger may be a moment behind; once it has the end, that counts."""
    known = EndedTasks()
    ended, behind = task(TaskState.COMPLETED, result="x"), task(TaskState.WORKING)
    assert known.newest(behind) is behind
    assert known.note(behind) is behind
    assert known.newest(behind) is behind
    assert known.note(ended) is ended
    assert known.newest(behind) is ended
    recorded = task(TaskState.COMPLETED, result="x", parts=["x"])
    assert known.newest(recorded) is recorded
