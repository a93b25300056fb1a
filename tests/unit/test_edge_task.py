"""What an edge tells of a task whose values no protocol can carry."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from waooaw_celery.edges.gateway.task import TaskError, TaskInfo, TaskState

HALF = "\ud83d"


def task(**fields: Any) -> TaskInfo:
    now = datetime.now(UTC)
    known: dict[str, Any] = {
        "task_id": "1",
        "agent": "a",
        "method": "m",
        "is_workflow": False,
        "state": TaskState.COMPLETED,
        "conversation_id": "1",
        "from_agent": "b",
        "arguments": {},
        "result": None,
        "error": None,
        "waits_for": None,
        "progress": None,
        "created_at": now,
        "updated_at": now,
    }
    return TaskInfo(**known | fields)


@pytest.mark.parametrize("name", ["result", "progress", "parts"])
@pytest.mark.parametrize("value", [HALF, [{"a": [HALF]}], {HALF: 1}])
def test_half_a_surrogate_pair_in_a_result_becomes_an_error(name: str, value: Any) -> None:
    """The task has ended, and says why its value is missing."""
    found = task(**{name: value})
    assert getattr(found, name) is None
    assert found.error is not None
    assert found.error.type == "ResultNotUtf8"
    assert found.state is TaskState.COMPLETED


def test_every_other_result_stays() -> None:
    """Also one of characters beyond 16 bits, and one that JSON lacks."""
    value = ["😀", {"at": datetime.now(UTC), "raw": b"\x00"}, None]
    assert (task(result=value).result, task(result=value).error) == (value, None)


def test_half_a_surrogate_pair_in_an_error_is_escaped() -> None:
    """The text of an error can be written as UTF-8."""
    error = TaskError(type="ValueError", message=f"no {HALF}, but 😀")
    assert error.message == "no \\ud83d, but 😀"
    assert json.dumps(error.to_dict(), ensure_ascii=False).encode()
