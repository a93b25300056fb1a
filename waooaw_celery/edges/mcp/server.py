"""The MCP server of an edge, for every transport: who calls, and which error has which form."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import mcp_types as types
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.gateway.gateway import Gateway, task_id_of
from waooaw_celery.edges.mcp.calls import Calls, Report
from waooaw_celery.edges.mcp.resources import Resources
from waooaw_celery.edges.mcp.tools import Tools
from waooaw_celery.errors import InvalidMessage, NotPermitted, WaooawError
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

T = TypeVar("T")
#: The header with the id of a session.
SESSION_HEADER = "mcp-session-id"
#: The longest id of a session that is taken.
MAX_SESSION_ID = 128
CANCELLED = "notifications/cancelled"
_INSTRUCTIONS = (
    "Each tool agent-method is a method or workflow of an agent. A call is recorded as a task; its id is in "
    "_meta['waooaw/taskId'] of the result. Ask for a task that has not ended with task_get, answer one that waits "
    "for a signal with task_signal, and cancel one with task_cancel."
)


class McpServer:
    """Tools and resources of an edge, as a server of the package ``mcp``.

    Args:
        gateway: calls agents.
        timeout: seconds within which a request must be answered, and a workflow must have ended.
        cancel_when_gone: whether a task is cancelled when its client goes away before the answer.
        principal: who calls, on a transport without HTTP; None: the HTTP request tells.
        session: id of the only session of such a transport; None: the HTTP request tells.
    """

    def __init__(
        self,
        gateway: Gateway,
        *,
        timeout: float,
        cancel_when_gone: bool,
        principal: Principal | None = None,
        session: str | None = None,
    ) -> None:
        self.calls = Calls(gateway, cancel_when_gone=cancel_when_gone)
        self._tools = Tools(gateway, self.calls, timeout)
        self._resources = Resources(gateway.app)
        self._principal, self._session = principal, session
        self.server: Server[Any] = Server(
            "waooaw",
            version=_version(),
            title="Agents of WAOOAW",
            instructions=_INSTRUCTIONS,
            # Without it, each call would list all tools first, to look for parameters that are sent as headers.
            get_tool_input_schema=lambda _: None,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
        )
        if principal is not None:
            self.server.middleware.append(self._note_cancellation)

    def cancel(self, principal: Principal, session: str, request_id: str | int) -> None:
        """Cancel the task of a request that a client has cancelled, whichever edge got the request.

        Args:
            principal: whose client it is.
            session: id of the client's session.
            request_id: id of the request within it.
        """
        self.calls.spawn(self.calls.cancel(principal, task_id_of(principal, _key(session, request_id))))

    async def _list_tools(
        self, ctx: ServerRequestContext[Any, Any], _: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=await self._guarded(self._tools.list(self._caller(ctx))))

    async def _call_tool(
        self, ctx: ServerRequestContext[Any, Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        session = self._session_of(ctx)
        key = None if session is None or ctx.request_id is None else _key(session, ctx.request_id)
        wants_progress = ctx.meta is not None and ctx.meta.get("progress_token") is not None
        return await self._guarded(
            self._tools.call(
                self._caller(ctx),
                params.name,
                params.arguments or {},
                key=key,
                report=_report(ctx) if wants_progress else None,
                # By HTTP, from 2026-07-28 on, to close the answer's stream is how a client cancels.
                gone_is_cancelled=ctx.request is not None and ctx.protocol_version in MODERN_PROTOCOL_VERSIONS,
            )
        )

    async def _list_resources(
        self, ctx: ServerRequestContext[Any, Any], _: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        return types.ListResourcesResult(resources=self._resources.listed(self._caller(ctx)))

    async def _list_templates(
        self, ctx: ServerRequestContext[Any, Any], _: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(resource_templates=self._resources.templates(self._caller(ctx)))

    async def _read_resource(
        self, ctx: ServerRequestContext[Any, Any], params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        return await self._guarded(self._resources.read(self._caller(ctx), str(params.uri)))

    async def _note_cancellation(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Cancel the task of a request that the client cancels. The package itself stops only our waiting."""
        cancelled = cancelled_request(ctx.method, ctx.params)
        if cancelled is not None and self._principal is not None and self._session is not None:
            self.cancel(self._principal, self._session, cancelled)
        return await call_next(ctx)

    def _caller(self, ctx: ServerRequestContext[Any, Any]) -> Principal:
        """Return who makes this request, which the middleware of the edge has authenticated."""
        if self._principal is not None:
            return self._principal
        principal = ctx.request.scope.get("state", {}).get("principal") if ctx.request is not None else None
        if not isinstance(principal, Principal):
            raise MCPError(
                types.INTERNAL_ERROR, "nobody was authenticated: mount the edge as create_edge makes it"
            )
        return principal

    def _session_of(self, ctx: ServerRequestContext[Any, Any]) -> str | None:
        if self._session is not None:
            return self._session
        return None if ctx.request is None else session_of(ctx.request.headers)

    async def _guarded(self, work: Awaitable[T]) -> T:
        """Await an answer; an error becomes one of the protocol, with our sentence.

        Raises:
            MCPError: in place of every error.
        """
        try:
            return await work
        except WaooawError as error:
            raise MCPError(
                types.INVALID_PARAMS if _is_callers(error) else types.INTERNAL_ERROR, str(error)
            ) from error
        except MCPError:
            raise
        except Exception as error:
            logger.exception("an MCP request failed", extra={"action": "mcp_request_failed"})
            raise MCPError(types.INTERNAL_ERROR, "the edge failed at this request: its log says why") from error


def _version() -> str:
    try:
        return version("waooaw-celery")
    except PackageNotFoundError:  # it runs from a folder
        return ""


def session_of(headers: Mapping[str, str]) -> str | None:
    """Return the id of the session that a request names; None: it names none, or none that is valid."""
    session = headers.get(SESSION_HEADER)
    return session if session and len(session) <= MAX_SESSION_ID and session.isascii() else None


def cancelled_request(method: str, params: Mapping[str, Any] | None) -> str | int | None:
    """Return the id of the request that a message cancels; None: it cancels none."""
    found = (params or {}).get("requestId") if method == CANCELLED else None
    return found if isinstance(found, str | int) and not isinstance(found, bool) else None


def _key(session: str, request_id: str | int) -> str:
    """Return the key of a call, from which its task's id follows: each edge finds the same."""
    return f"mcp\x00{session}\x00{request_id!r}"


def _report(ctx: ServerRequestContext[Any, Any]) -> Report:
    async def report(number: float, text: str) -> None:
        await ctx.session.report_progress(number, message=text)

    return report


def _is_callers(error: WaooawError) -> bool:
    """Whether the request is wrong, and not the servers behind this one."""
    return isinstance(error, LookupError | InvalidMessage | NotPermitted)
