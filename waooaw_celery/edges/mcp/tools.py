"""The tools of an edge: each operation that a principal may call, and three for tasks that were called before."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import mcp_types as types

from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.gateway.catalogue import Operation, operations_of
from waooaw_celery.edges.gateway.gateway import Gateway, task_id_of
from waooaw_celery.edges.gateway.task import Call, TaskInfo
from waooaw_celery.edges.mcp.calls import Calls, Report
from waooaw_celery.edges.mcp.results import refusal, result_of, task_result, tool_of
from waooaw_celery.edges.mcp.tool_names import operation_named, tool_name
from waooaw_celery.errors import InvalidMessage, NotPermitted, UnknownAgent, WaooawError
from waooaw_celery.messages.validation import JSON

#: How this protocol is named in the ledger.
PROTOCOL = "mcp"
#: Longest time for which ``task_get`` waits, in seconds.
MAX_WAIT_SECONDS = 60.0

_TASK_ID = {"type": "string", "description": "The id of the task, from the answer to the call that began it."}
_TASK_TOOLS = (
    types.Tool(
        name="task_get",
        title="Get a task",
        description="Get the state and the result of a task that was called before, of any length.",
        input_schema={
            "type": "object",
            "properties": {
                "task_id": _TASK_ID,
                "wait": {
                    "type": "number",
                    "minimum": 0,
                    "maximum": MAX_WAIT_SECONDS,
                    "description": "Seconds for which to wait for its end; without it: none.",
                },
            },
            "required": ["task_id"],
            "additionalProperties": False,
        },
        annotations=types.ToolAnnotations(read_only_hint=True),
    ),
    types.Tool(
        name="task_signal",
        title="Answer a task that waits",
        description="Send a task the signal for which it waits, such as a person's decision.",
        input_schema={
            "type": "object",
            "properties": {
                "task_id": _TASK_ID,
                "signal": {"type": "string", "description": "The name of the signal for which the task waits."},
                "payload": {"description": "What to tell it: any JSON value."},
            },
            "required": ["task_id", "signal"],
            "additionalProperties": False,
        },
    ),
    types.Tool(
        name="task_cancel",
        title="Cancel a task",
        description="Cancel a task that was called before and has not ended.",
        input_schema={
            "type": "object",
            "properties": {"task_id": _TASK_ID},
            "required": ["task_id"],
            "additionalProperties": False,
        },
        annotations=types.ToolAnnotations(destructive_hint=True, idempotent_hint=True),
    ),
)
_TASK_ARGUMENTS = {tool.name: tool.input_schema for tool in _TASK_TOOLS}


class Tools:
    """Lists and calls tools.

    Args:
        gateway: calls agents.
        calls: runs the calls.
        timeout: seconds within which a request must be answered, and a workflow must have ended.
    """

    def __init__(self, gateway: Gateway, calls: Calls, timeout: float) -> None:
        self._gateway, self._calls, self._timeout = gateway, calls, timeout

    async def list(self, principal: Principal) -> list[types.Tool]:
        """Return the tools of a principal, as the registry knows them now.

        Raises:
            StoreUnavailable: the registry does not answer.
        """
        agents = await asyncio.to_thread(self._gateway.catalogue.agents, principal)
        operations = [each for info in agents for each in operations_of(info, principal)]
        named = [(tool_name(each.agent, each.method), each) for each in operations]
        return [*(tool_of(each, name) for name, each in named if name is not None), *_TASK_TOOLS]

    async def call(
        self,
        principal: Principal,
        name: str,
        arguments: dict[str, Any],
        *,
        key: str | None,
        report: Report | None,
        gone_is_cancelled: bool,
    ) -> types.CallToolResult:
        """Call a tool. What the model can correct or try again is a result with ``isError``.

        Args:
            principal: who calls.
            name: the name of the tool.
            arguments: its arguments.
            key: names this call among those of the principal, so that any edge can cancel it; None: nothing.
            report: tells the client of progress; None: it does not want to know.
            gone_is_cancelled: whether the protocol calls it a cancellation when the client goes away.

        Raises:
            UnknownAgent, NotPermitted: there is no such tool for this principal.
        """
        if name in _TASK_ARGUMENTS:
            return await self._call_task_tool(principal, name, arguments, key)
        agent, method = operation_named(name)
        operation = await self._gateway.operation(principal, agent, method)
        call = Call(
            principal=principal,
            protocol=PROTOCOL,
            agent=agent,
            method=method,
            arguments=arguments,
            task_id=self._gateway.new_task_id() if key is None else task_id_of(principal, key),
            timeout=self._timeout,
        )
        try:
            task = await self._calls.run(
                call, streams=operation.streams, report=report, gone_is_cancelled=gone_is_cancelled
            )
        except (UnknownAgent, NotPermitted):
            raise
        except WaooawError as error:
            return refusal(str(error))
        return result_of(task, operation, why_open=self._why_open(task, operation))

    def _why_open(self, task: TaskInfo, operation: Operation) -> str:
        return f"this edge stops, or {self._timeout:g} s were over, before {operation.method} had ended"

    async def _call_task_tool(
        self, principal: Principal, name: str, arguments: dict[str, Any], key: str | None
    ) -> types.CallToolResult:
        try:
            task_id = _checked(name, arguments)
            if name == "task_cancel":
                return task_result(await self._gateway.cancel(principal, task_id))
            if name == "task_signal":
                payload: JSON = arguments.get("payload")
                signal_id = str(uuid4()) if key is None else task_id_of(principal, key)
                await self._gateway.signal(principal, task_id, arguments["signal"], payload, signal_id=signal_id)
                return task_result(await self._gateway.task(principal, task_id))
            return task_result(await self._gateway.wait(principal, task_id, float(arguments.get("wait", 0.0))))
        except WaooawError as error:
            return refusal(str(error))


def _checked(name: str, arguments: dict[str, Any]) -> str:
    """Return the id of the task in the arguments of a generic tool.

    Raises:
        InvalidMessage: an argument is missing, unknown or of a wrong type.
    """
    schema = _TASK_ARGUMENTS[name]
    allowed = ", ".join(schema["properties"])
    if unknown := set(arguments) - set(schema["properties"]):
        raise InvalidMessage(f"{name} has no argument {sorted(unknown)[0]!r:.80}: it has {allowed}")
    for required in schema["required"]:
        if not isinstance(arguments.get(required), str):
            raise InvalidMessage(f"{name} needs the text {required!r}")
    wait = arguments.get("wait", 0)
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait <= MAX_WAIT_SECONDS:
        raise InvalidMessage(f"wait must be a number of seconds from 0 to {MAX_WAIT_SECONDS:g}, not {wait!r:.40}")
    return str(arguments["task_id"])
