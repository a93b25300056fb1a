"""An agent whose methods are the tools of an outside MCP server, which any worker of the application runs."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from celery.signals import worker_init

from waooaw_celery.agents.agent import Agent
from waooaw_celery.app.app import AgentApp
from waooaw_celery.discovery.contracts.contract import foreign_contract
from waooaw_celery.edges.mcp.tool_names import method_for
from waooaw_celery.edges.protection.networks import Network, networks
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import JSON
from waooaw_celery.worker.current_task import current_task
from waooaw_celery.worker.health.clock import clock_of
from waooaw_celery.worker.retries.retry_policy import RetryPolicy

if TYPE_CHECKING:
    import mcp_types as types

    from waooaw_celery.edges.mcp.tool_server import ToolServer

logger = get_logger(__name__)

#: Most tools that are declared as methods, and most characters of a tool's schemas that are declared with it.
MAX_TOOLS, MAX_SCHEMA = 500, 20_000


class McpAgent(Agent):
    """An agent whose methods are the tools of an outside MCP server.

    Importing its module starts nothing. Without ``tools``, a worker asks the server for its tools when it starts,
    and declares each as a method, with its schemas as contract. Two methods are always there:
    ``call_tool(name, arguments)``, for any tool, and ``list_tools()``.

    A method returns the structured result of its tool, or the text, or a list of other content. A tool that fails
    raises ToolError with its text. Each process of the worker's pool has its own connection, and a server process
    of its own, from the first call on; it ends with that process.

    Args:
        name: name of the agent.
        app: the application.
        command: the program of the server and its arguments; a ``url`` instead: where it listens.
        url: the address of the server, of streamable HTTP.
        tools: the names of its tools; None: a worker asks for them. In the name of a method, ``_`` stands for what
            a method's name cannot have, such as ``-``.
        env: environment variables of the server's process; it gets few others, such as ``PATH`` and ``HOME``.
        cwd: its working directory.
        headers: headers of each HTTP request, such as ``Authorization``.
        timeout: seconds of a call whose request has no deadline.
        start_seconds: within which the server must be ready.
        max_restarts: how often it is started again within ``restart_seconds``; after that, calls fail until the
            window has passed.
        restart_seconds: the window of ``max_restarts``.
        retries: when a call is tried again, as for ``Agent.method``.
        allowed_networks: inner networks that the ``url`` may lead to, such as ``10.0.0.0/8``.
        options: the other arguments of ``Agent``.

    Raises:
        ConfigurationError: an argument is invalid.

    Example:
        >>> files = McpAgent("files", app, command=["npx", "@modelcontextprotocol/server-filesystem", "/data"])
        >>> RequestResponseHandler(app).request("files", "read_file", {"path": "/data/report.txt"})
    """

    def __init__(
        self,
        name: str,
        app: AgentApp,
        *,
        command: Sequence[str] | None = None,
        url: str | None = None,
        tools: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        start_seconds: float = 30.0,
        max_restarts: int = 5,
        restart_seconds: float = 60.0,
        retries: int | RetryPolicy | None = None,
        allowed_networks: Sequence[str | Network] = (),
        **options: Any,
    ) -> None:
        _check(name, command, url, tools)
        super().__init__(name, app, **options)
        self._command, self._url, self._env, self._cwd = command, url, env, cwd
        self._headers, self._allowed = headers, networks(allowed_networks)
        self._timeout, self._start_seconds = timeout, start_seconds
        self._max_restarts, self._restart_seconds = max_restarts, restart_seconds
        self._handler_options: dict[str, Any] = {} if retries is None else {"retries": retries}
        self._server: tuple[asyncio.AbstractEventLoop, ToolServer] | None = None
        self.method(self._call_tool, name="call_tool", **self._handler_options)
        self.method(self._list_tools, name="list_tools")
        for tool in tools or ():
            self._declare(tool)
        if tools is None:
            worker_init.connect(self._discover, weak=False, dispatch_uid=f"waooaw.mcp.{id(app)}.{name}")

    async def _call_tool(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        """Call a tool of the server."""
        return await self._connection().call(name, arguments or {}, self._seconds())

    async def _list_tools(self) -> list[dict[str, Any]]:
        """List the tools of the server, with their schemas."""
        found = await self._connection().tools(self._seconds())
        return [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in found]

    def _declare(self, tool: str, contract: dict[str, JSON] | None = None) -> None:
        """Declare a tool as a method.

        Raises:
            ConfigurationError: a method of this name exists, or a method cannot have it.
        """

        async def call(**arguments: Any) -> Any:
            return await self._connection().call(tool, arguments, self._seconds())

        method = method_for(tool)
        self.method(call, name=method, **self._handler_options)
        if contract is not None:
            self.app.declarations[self.name].set_contract(method, contract)

    def _discover(self, sender: Any, **_: Any) -> None:
        """Ask the server for its tools, in the main process of a worker, before its pool starts."""
        if sender.app is not self.app or self.name not in self.app.consumed_agents():
            return
        try:
            tools = asyncio.run(self._tools_once())
        except Exception:
            logger.exception(
                "the tools of %s are not known: its methods are call_tool and list_tools only, until a worker "
                "starts that reaches its server",
                self.name,
                extra={"action": "tools_unknown"},
            )
            return
        for tool in tools[:MAX_TOOLS]:
            try:
                self._declare(tool.name, _contract(tool))
            except ConfigurationError as error:
                logger.warning(
                    "the tool %a of %s is no method, call it by call_tool: %s",
                    *(tool.name[:100], self.name, error),
                    extra={"action": "tool_not_declared"},
                )

    async def _tools_once(self) -> list[types.Tool]:
        server = self._new_server()
        try:
            return await server.tools(self._start_seconds)
        finally:
            await server.close()

    def _connection(self) -> ToolServer:
        """Return the connection of this process, whose event loop owns it."""
        loop = asyncio.get_running_loop()
        if self._server is None or self._server[0] is not loop:
            self._server = loop, self._new_server()
        return self._server[1]

    def _new_server(self) -> ToolServer:
        try:  # here: only a worker needs the package
            from waooaw_celery.edges.mcp.tool_server import ToolServer
            from waooaw_celery.edges.mcp.transports import address, process
        except ImportError as error:
            raise ConfigurationError(
                f"an agent of an MCP server needs more packages ({error}): run `pip install 'waooaw-celery[mcp]'`"
            ) from error
        connect = (
            process(self._command, env=self._env, cwd=self._cwd)
            if self._command is not None
            else address(str(self._url), headers=self._headers, allowed=self._allowed)
        )
        return ToolServer(
            self.name,
            connect,
            start_seconds=self._start_seconds,
            max_restarts=self._max_restarts,
            restart_seconds=self._restart_seconds,
        )

    def _seconds(self) -> float:
        """Return the seconds that a call may take: until its caller stops waiting, if that is known."""
        task = current_task()
        deadline = task.caller_deadline() if task is not None else None
        return self._timeout if deadline is None else (deadline - clock_of(self.app).now()).total_seconds()


def _check(name: str, command: object, url: object, tools: object) -> None:
    if (command is None) == (url is None):
        raise ConfigurationError(f"the agent {name!r:.80} needs either a command or a url of an MCP server")
    is_list = (
        isinstance(command, list | tuple) and bool(command) and all(isinstance(each, str) for each in command)
    )
    if command is not None and not is_list:
        raise ConfigurationError(
            f'command must be a list of texts, such as ["npx", "server"], not {command!r:.80}'
        )
    if url is not None and not str(url).startswith(("http://", "https://")):
        raise ConfigurationError(f"url must be the address of an MCP server, https://…, not {url!r:.80}")
    if isinstance(tools, str):
        raise ConfigurationError(f"tools must be a list of names, such as [{tools!r:.80}]")


def _contract(tool: types.Tool) -> dict[str, JSON] | None:
    """Return the contract of a tool; None: it is too large, or no schema of an object."""
    size = len(json.dumps([tool.input_schema, tool.output_schema, tool.description]))
    if size > MAX_SCHEMA or tool.input_schema.get("type") != "object":
        return None
    return foreign_contract(tool.input_schema, tool.output_schema, tool.description)
