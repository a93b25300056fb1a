"""Serves MCP by streamable HTTP at ``/mcp``.

The server is stateless: each request is complete in itself, so that several edges behind one address may share the
requests of one client, and none of them has to remember it. The id of a session, which clients of revisions before
2026-07-28 get, is only a name for their requests: with it, any edge finds the task of a request that is cancelled.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from waooaw_celery.edges.application import EdgeContext, ProtocolParts
from waooaw_celery.edges.mcp.server import CANCELLED, SESSION_HEADER, McpServer, cancelled_request, session_of
from waooaw_celery.edges.protection.bounds import replayed

PATH = "/mcp"
_VERSION_HEADER = "mcp-protocol-version"


def parts(context: EdgeContext) -> ProtocolParts:
    """Return what MCP adds to an edge."""
    endpoint = McpEndpoint(context)
    return ProtocolParts(routes=[Route(PATH, endpoint=endpoint)], lifespan=endpoint.lifespan, stop=endpoint.stop)


class McpEndpoint:
    """The ASGI application at ``/mcp``.

    Args:
        context: what the edge gives each protocol.
    """

    def __init__(self, context: EdgeContext) -> None:
        options = context.options
        self._max_body = options.bounds.max_body_bytes
        self._mcp = McpServer(context.gateway, timeout=options.timeout, cancel_when_gone=options.cancel_when_gone)
        self._manager: StreamableHTTPSessionManager | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Run the manager of the package, which can run once only: each start of the edge makes one."""
        self._loop = asyncio.get_running_loop()
        # The middleware of the edge has checked the names of the host and of the origin already.
        self._manager = StreamableHTTPSessionManager(
            self._mcp.server, stateless=True, max_request_body_size=self._max_body
        )
        async with self._manager.run():
            yield
        self._manager = None

    def stop(self) -> None:
        """Answer all open calls; call it from any thread, or from the handler of a signal."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._mcp.calls.stop)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if self._manager is None:
            await Response("the edge is not running: its lifespan was not entered", 503)(scope, receive, send)
            return
        request = Request(scope, receive)
        if request.method != "POST":
            # Nothing is sent that no request asked for, and no session is kept that a client could end.
            await Response(status_code=405, headers={"Allow": "POST"})(scope, receive, send)
            return
        if request.headers.get(_VERSION_HEADER) not in MODERN_PROTOCOL_VERSIONS:
            body = await request.body()
            receive = replayed(body, receive)
            self._note_cancellation(request, body)
            if session_of(request.headers) is None:
                send = _with_session(send)
        await self._manager.handle_request(scope, receive, send)

    def _note_cancellation(self, request: Request, body: bytes) -> None:
        """Cancel the task of a request that the client cancels, before revision 2026-07-28 by a notification."""
        session = session_of(request.headers)
        if session is None or CANCELLED.encode() not in body:
            return
        try:
            message: Any = json.loads(body)
        except (ValueError, RecursionError):  # the manager answers it
            return
        if not isinstance(message, dict) or not isinstance(params := message.get("params"), dict):
            return
        cancelled = cancelled_request(str(message.get("method")), params)
        if cancelled is not None:
            self._mcp.cancel(request.state.principal, session, cancelled)


def _with_session(send: Send) -> Send:
    """Return ``send`` that names a new session in the answer; the client keeps it after ``initialize``."""

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (SESSION_HEADER.encode(), uuid4().hex.encode())]
            message = {**message, "headers": headers}
        await send(message)

    return named
