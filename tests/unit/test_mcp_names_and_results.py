"""MCP: the names of tools, and the forms of schemas and results."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from mcp.shared.tool_name_validation import validate_tool_name

from waooaw_celery.edges.gateway.catalogue import Operation
from waooaw_celery.edges.gateway.task import TaskError, TaskInfo, TaskState
from waooaw_celery.edges.mcp.results import TASK_ID, output_schema, result_of, task_result, text_of, tool_of
from waooaw_celery.edges.mcp.server import cancelled_request, session_of
from waooaw_celery.edges.mcp.tool_names import method_for, operation_named, tool_name
from waooaw_celery.errors import UnknownMethod


@pytest.mark.parametrize(
    ("agent", "method"),
    [("files", "read"), ("a-b", "c"), ("a-b-", "_c"), ("a_b", "c_d"), ("0", "x"), ("a" * 63, "b" * 64)],
)
def test_the_name_of_a_tool_is_reversed_without_doubt(agent: str, method: str) -> None:
    """Also if the name of the agent has dashes; and MCP allows the name."""
    name = tool_name(agent, method)
    assert name is not None
    assert validate_tool_name(name).is_valid
    assert operation_named(name) == (agent, method)


def test_no_two_operations_have_one_name() -> None:
    """A method has no dash, so that no other place can separate the parts."""
    names = {tool_name(agent, method) for agent in ("a", "a-b", "a-b-c") for method in ("b", "c", "b_c")}
    assert len(names) == 9


@pytest.mark.parametrize(("agent", "method"), [("a", "é"), ("a", "b" * 128)])
def test_a_name_that_mcp_does_not_allow_is_no_tool(agent: str, method: str) -> None:
    """It has a letter or a length that MCP does not have."""
    assert tool_name(agent, method) is None


@pytest.mark.parametrize("name", ["", "task_get", "-", "a-", "-b"])
def test_other_names_are_unknown(name: str) -> None:
    """The error says how to find those that there are."""
    with pytest.raises(UnknownMethod, match="tools/list"):
        operation_named(name)


@pytest.mark.parametrize(
    ("tool", "method"),
    [("read_file", "read_file"), ("read-file", "read_file"), ("a.b/c", "a_b_c"), ("2d", "_2d"), ("é", "_")],
)
def test_a_tool_of_another_server_has_the_name_of_a_method(tool: str, method: str) -> None:
    """What such a name cannot have becomes an underscore."""
    assert method_for(tool) == method


def operation(result: dict[str, Any] | None, **fields: Any) -> Operation:
    given = {"is_workflow": False, "description": "", "parameters": {}, "part": None, **fields}
    return Operation(agent="writer", method="write", result=result, **given)


def test_a_result_that_is_an_object_keeps_its_schema() -> None:
    """Every other one is wrapped in an object, with its definitions at the root."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert output_schema(operation(schema)) == schema
    listed = {"type": "array", "items": {"$ref": "#/$defs/Item"}, "$defs": {"Item": {"type": "string"}}}
    wrapped = output_schema(operation(listed))
    assert wrapped is not None
    assert wrapped["$defs"] == {"Item": {"type": "string"}}
    assert wrapped["properties"]["result"] == {"type": "array", "items": {"$ref": "#/$defs/Item"}}


@pytest.mark.parametrize(
    "unknown", [operation(None), operation({}), operation({"type": "object"}, is_workflow=True)]
)
def test_a_result_without_one_schema_declares_none(unknown: Operation) -> None:
    """A workflow may also answer that it waits."""
    assert output_schema(unknown) is None


def test_the_arguments_of_a_tool_are_an_object() -> None:
    """Whatever the contract says; and a tool has a description."""
    tool = tool_of(operation(None), "writer-write")
    assert tool.input_schema == {"type": "object"}
    assert tool.description == "The method write of the agent writer."


def task(state: TaskState, **fields: Any) -> TaskInfo:
    now = datetime.now(UTC)
    given: dict[str, Any] = {"result": None, "error": None, "waits_for": None, "progress": None, **fields}
    return TaskInfo(
        task_id="t1",
        agent="writer",
        method="write",
        is_workflow=False,
        state=state,
        conversation_id="c1",
        from_agent="portal",
        arguments={},
        created_at=now,
        updated_at=now,
        **given,
    )


@pytest.mark.parametrize(
    ("found", "is_error", "text"),
    [
        (task(TaskState.COMPLETED, result="done"), False, "done"),
        (task(TaskState.COMPLETED, result=[1]), False, "[1]"),
        (task(TaskState.COMPLETED), False, "null"),
        (task(TaskState.COMPLETED, error=TaskError(type="ResultNotRecorded", message="gone")), True, "gone"),
        (task(TaskState.INPUT_REQUIRED, waits_for="approval"), False, "waits for the signal 'approval'"),
        (task(TaskState.FAILED, error=TaskError(type="ValueError", message="no")), True, "ValueError: no"),
        (task(TaskState.FAILED), True, "does not say why"),
        (task(TaskState.CANCELLED), True, "was cancelled"),
        (task(TaskState.EXPIRED), True, "did not answer in time"),
        (task(TaskState.WORKING), True, "The task t1 goes on"),
    ],
)
def test_each_state_has_a_result(found: TaskInfo, is_error: bool, text: str) -> None:
    """With a text for the model, and the id of the task."""
    result = result_of(found, operation(None))
    assert result.is_error is is_error
    assert text in cast(Any, result.content[0]).text
    assert result.meta == {TASK_ID: "t1"}


def test_types_that_json_does_not_have_are_texts() -> None:
    """As the schema of the tool says: no tag of ours is in the result of a call, or in that of task_get."""
    found = task(TaskState.COMPLETED, result=[datetime(2026, 11, 30, tzinfo=UTC), b"a"])
    expected = ["2026-11-30T00:00:00+00:00", "YQ=="]
    assert result_of(found, operation(None)).structured_content == {"result": expected}
    assert cast(Any, task_result(found).structured_content)["result"] == expected
    assert text_of(found.result) == json.dumps(expected)


def test_what_cancels_a_request_is_known() -> None:
    """Only a notification with the id of a request."""
    assert cancelled_request("notifications/cancelled", {"requestId": 0}) == 0
    assert cancelled_request("notifications/cancelled", {"requestId": "a"}) == "a"
    wrong: list[dict[str, Any] | None] = [None, {}, {"requestId": True}, {"requestId": {}}]
    for params in wrong:
        assert cancelled_request("notifications/cancelled", params) is None
    assert cancelled_request("tools/call", {"requestId": 1}) is None


def test_an_id_of_a_session_is_bounded() -> None:
    """One that is too long or has other characters counts as none."""
    assert session_of({"mcp-session-id": "abc"}) == "abc"
    assert (
        session_of({}) is session_of({"mcp-session-id": "x" * 200}) is session_of({"mcp-session-id": "é"}) is None
    )
