"""Schemas and results in the form of MCP: a tool of an operation, and the result of a task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import mcp_types as types

from waooaw_celery.edges.gateway.catalogue import Operation
from waooaw_celery.edges.gateway.task import TaskInfo, TaskState
from waooaw_celery.messages.topics.plain_json import as_json
from waooaw_celery.messages.validation import JSON

#: The key of a result's metadata with the id of the task, by which it can be asked for later.
TASK_ID = "waooaw/taskId"
#: Where a result that is no object stands in the structured content, which must be one.
WRAPPED = "result"
#: The arguments of a tool may have any form.
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


def tool_of(operation: Operation, name: str) -> types.Tool:
    """Return the tool of an operation.

    Args:
        operation: the method or workflow.
        name: the name of the tool.
    """
    about = operation.description or f"The {_kind(operation)} {operation.method} of the agent {operation.agent}."
    return types.Tool(
        name=name,
        title=f"{operation.agent}: {operation.method}",
        description=about,
        input_schema=_object_schema(operation.parameters),
        output_schema=output_schema(operation),
    )


def output_schema(operation: Operation) -> dict[str, Any] | None:
    """Return the schema of the structured result of an operation; None: it is not known before.

    A workflow may also answer that it waits for a signal, and a streaming method with its parts or its final
    result: neither has one schema.

    Args:
        operation: the method or workflow.
    """
    result = operation.result
    if operation.is_workflow or operation.streams or not result:
        return None
    if result.get("type") == "object":
        return dict(result)
    definitions = result.get("$defs")
    inner = {key: value for key, value in result.items() if key != "$defs"}
    schema: dict[str, Any] = {"type": "object", "properties": {WRAPPED: inner}, "required": [WRAPPED]}
    return {**schema, "$defs": definitions} if definitions else schema


def result_of(task: TaskInfo, operation: Operation, *, why_open: str = "") -> types.CallToolResult:
    """Return the result of a tool's call.

    Args:
        task: the task.
        operation: what was called.
        why_open: why the task is answered although it has not ended, if so.
    """
    meta = {TASK_ID: task.task_id}
    if task.state is TaskState.COMPLETED and task.error is None:
        value = as_json(task.result, str)
        plain = isinstance(value, dict) and (not operation.result or operation.result.get("type") == "object")
        return types.CallToolResult(
            content=[types.TextContent(text=text_of(value))],
            structured_content=value if plain else {WRAPPED: value},
            _meta=meta,
        )
    if task.state is TaskState.INPUT_REQUIRED:
        text = (
            f"The task {task.task_id} waits for the signal {task.waits_for!r}. Send it with the tool task_signal, "
            "and ask for the result with task_get."
        )
        return types.CallToolResult(
            content=[types.TextContent(text=text)], structured_content=task_form(task), _meta=meta
        )
    return types.CallToolResult(
        content=[types.TextContent(text=_why_without_result(task, why_open))], is_error=True, _meta=meta
    )


def refusal(text: str, meta: dict[str, Any] | None = None) -> types.CallToolResult:
    """Return the result of a call that was refused, which the model reads and may correct.

    Args:
        text: why, and what to do.
        meta: metadata of the result.
    """
    return types.CallToolResult(content=[types.TextContent(text=text)], is_error=True, _meta=meta)


def task_result(task: TaskInfo) -> types.CallToolResult:
    """Return a task as the result of one of the generic tools."""
    form = task_form(task)
    return types.CallToolResult(content=[types.TextContent(text=text_of(form))], structured_content=form)


def task_form(task: TaskInfo) -> dict[str, JSON]:
    """Return a task as JSON, without its arguments, which its caller knows."""
    form = replace(task, result=as_json(task.result, str), progress=as_json(task.progress, str)).to_dict()
    del form["arguments"]
    return form


def text_of(value: JSON) -> str:
    """Return a result as text: a text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(as_json(value, str), ensure_ascii=False)


def _why_without_result(task: TaskInfo, why_open: str) -> str:
    what = f"{task.agent}.{task.method}"
    if task.state is TaskState.CANCELLED:
        return f"{what} was cancelled"
    if task.state is TaskState.EXPIRED:
        return f"{what} did not answer in time: {task.error.message if task.error else 'its time is over'}"
    if task.error is not None:
        return f"{task.error.type}: {task.error.message}"
    if task.state.final:
        return f"{what} failed, and the ledger does not say why"
    why = why_open or f"{what} has not ended"
    return f"{why}. The task {task.task_id} goes on: ask for it with the tool task_get"


def _object_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    return dict(schema) if schema.get("type") == "object" else {**_ANY_OBJECT, **schema, "type": "object"}


def _kind(operation: Operation) -> str:
    return "workflow" if operation.is_workflow else "method"
