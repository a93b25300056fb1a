"""The connection of one process with an outside MCP server: it is kept, and made again within a bound."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import mcp_types as types
from mcp.client.client import Client
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from waooaw_celery.edges.mcp.transports import Connect
from waooaw_celery.errors import RequestTimeout, ToolError, ToolServerUnavailable, WaooawError
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import JSON

logger = get_logger(__name__)

#: Seconds within which a server that did not answer a call must list its tools, or it is started again.
CHECK_SECONDS = 3.0
#: Most pages of a list of tools.
_MAX_PAGES = 100


class ToolServer:
    """The connection with a server. All methods are for one event loop.

    Args:
        name: how errors name the server.
        connect: makes the connection.
        start_seconds: within which the server must have answered the first message.
        max_restarts: how often the connection is made again within ``restart_seconds``.
        restart_seconds: the window of ``max_restarts``.
    """

    def __init__(
        self, name: str, connect: Connect, *, start_seconds: float, max_restarts: int, restart_seconds: float
    ) -> None:
        self._name, self._connect = name, connect
        self._start_seconds = start_seconds
        self._max_starts, self._window = 1 + max_restarts, restart_seconds
        self._starts: deque[float] = deque()
        self._link: _Link | None = None
        self._starting: asyncio.Future[_Link] | None = None
        #: The tasks that own a connection: the package enters and leaves it in one task.
        self._owners: set[asyncio.Task[None]] = set()

    async def call(self, tool: str, arguments: dict[str, Any], timeout: float) -> JSON:
        """Call a tool, and return its structured result, or else its content.

        Args:
            tool: its name.
            arguments: its arguments.
            timeout: seconds within which the server must be connected and answer.

        Raises:
            ToolError: the tool failed, or its answer is not valid.
            ToolServerUnavailable: the server cannot be reached, or it ended before the answer.
            RequestTimeout: there was no answer in time.
        """
        until = time.monotonic() + timeout
        link = await self._connected(until)
        try:
            async with asyncio.timeout(_left(until)):
                result = await link.client.call_tool(tool, arguments, read_timeout_seconds=_left(until))
        except (TimeoutError, asyncio.CancelledError) as error:
            link.is_doubtful = True
            if isinstance(error, asyncio.CancelledError):
                raise
            raise self._no_answer(link, tool, timeout) from error
        except MCPError as error:
            raise self._failed(link, tool, error, timeout) from error
        except (
            ValidationError,
            RuntimeError,
        ) as error:  # it does not match the protocol, or the tool's own schema
            raise ToolError(f"the answer of the tool {tool!r} of {self._name} is not valid: {error}") from error
        if result.is_error:
            raise ToolError(_text(result.content) or f"the tool {tool!r} of {self._name} failed without a text")
        return _value(result)

    async def tools(self, timeout: float) -> list[types.Tool]:
        """Return the tools of the server.

        Args:
            timeout: seconds within which the server must be connected and answer.

        Raises:
            ToolServerUnavailable, RequestTimeout: as ``call``.
            ToolError: the answer is not valid.
        """
        until = time.monotonic() + timeout
        link = await self._connected(until)
        try:
            async with asyncio.timeout(_left(until)):
                return await _all_tools(link.client)
        except TimeoutError as error:
            link.is_doubtful = True
            raise self._no_answer(link, "tools/list", timeout) from error
        except MCPError as error:
            raise self._failed(link, "tools/list", error, timeout) from error
        except ValidationError as error:
            raise ToolError(f"the list of the tools of {self._name} is not valid: {error}") from error

    async def close(self) -> None:
        """End the connection, and the server if it is a process."""
        if self._link is not None:
            self._link.ended.set()
        if self._owners:
            await asyncio.wait(self._owners)

    async def _connected(self, until: float) -> _Link:
        """Return the connection, made anew if the server has ended or does not answer."""
        link = self._link
        if link is not None and link.is_doubtful and not link.ended.is_set():
            await self._check(link, until)
        if link is not None and not link.ended.is_set():
            return link
        starting = self._starting
        if starting is None or starting.done():
            starting = self._starting = self._start()
        done, _ = await asyncio.wait([starting], timeout=_left(until))
        if not done:
            raise RequestTimeout(f"the server of {self._name} was not ready in time; it goes on starting")
        return starting.result()

    async def _check(self, link: _Link, until: float) -> None:
        """Look whether a server that did not answer is alive. If not, its connection is ended."""
        try:
            async with asyncio.timeout(min(CHECK_SECONDS, _left(until))):
                await link.client.session.list_tools()
            link.is_doubtful = False
        except (TimeoutError, MCPError, ValidationError) as error:
            logger.warning(
                "the server of %s does not answer, and is started again: %s",
                *(self._name, error or type(error).__name__),
                extra={"action": "tool_server_hung"},
            )
            link.ended.set()

    def _start(self) -> asyncio.Future[_Link]:
        """Begin to connect, and return the future of the connection.

        Raises:
            ToolServerUnavailable: it was done too often lately.
        """
        now = time.monotonic()
        while self._starts and self._starts[0] <= now - self._window:
            self._starts.popleft()
        if len(self._starts) >= self._max_starts:
            wait = self._starts[0] + self._window - now
            raise ToolServerUnavailable(
                f"the server of {self._name} ended {len(self._starts)} times within {self._window:g} s: it is not "
                f"started for another {wait:.0f} s. See the worker's log for what it wrote"
            )
        self._starts.append(now)
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[_Link] = loop.create_future()
        ready.add_done_callback(lambda future: future.cancelled() or future.exception())  # callers may have gone
        owner = loop.create_task(self._own(ready), name=f"mcp-{self._name}")
        self._owners.add(owner)
        owner.add_done_callback(self._owners.discard)
        return ready

    async def _own(self, ready: asyncio.Future[_Link]) -> None:
        """Make the connection, and hold it until it ends."""
        link = _Link()
        # A cancel scope must not end while the connection, which was entered within it, goes on.
        slow = asyncio.get_running_loop().call_later(self._start_seconds, _give_up, asyncio.current_task(), ready)
        try:
            async with Client(
                self._watched(link),
                read_timeout_seconds=self._start_seconds,
                client_info=types.Implementation(name="waooaw-celery", version="1"),
                cache=None,
            ) as client:
                link.client, self._link = client, link
                slow.cancel()
                ready.set_result(link)
                await link.ended.wait()
        except asyncio.CancelledError:
            if not ready.done():
                ready.set_exception(
                    ToolServerUnavailable(
                        f"the server of {self._name} was not ready within {self._start_seconds:g} s"
                    )
                )
            raise
        except Exception as error:  # noqa: BLE001 - it is logged, or given to those who wait for the connection
            cause = _first(error)
            if ready.done():
                logger.warning(
                    "the connection with the server of %s failed: %s",
                    *(self._name, cause),
                    extra={"action": "tool_server_lost"},
                )
            else:
                ready.set_exception(self._not_started(link, cause))
        finally:
            slow.cancel()
            link.ended.set()

    def _not_started(self, link: _Link, cause: Exception) -> WaooawError:
        if isinstance(cause, WaooawError):
            return cause
        text = str(cause) or type(cause).__name__
        hint = f" (it wrote what is no message: {link.noise})" if link.noise else ""
        return ToolServerUnavailable(f"the server of {self._name} cannot be started or reached: {text}{hint}")

    @asynccontextmanager
    async def _watched(self, link: _Link) -> AsyncIterator[Any]:
        """Make the connection, and note when the server ends it."""
        async with self._connect() as (read, write):
            send, receive = anyio.create_memory_object_stream[Any](0)

            async def forward() -> None:
                try:
                    async with send:
                        async for message in read:
                            if isinstance(message, Exception):
                                link.noise = f"{message}"[:200]
                            await send.send(message)
                except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                    pass  # the connection is being closed
                link.ended.set()

            async with anyio.create_task_group() as group:
                group.start_soon(forward)
                try:
                    yield receive, write
                finally:
                    group.cancel_scope.cancel()

    def _failed(self, link: _Link, tool: str, error: MCPError, timeout: float) -> WaooawError:
        if error.code == types.REQUEST_TIMEOUT:
            link.is_doubtful = True
            return self._no_answer(link, tool, timeout)
        if error.code == types.CONNECTION_CLOSED:
            link.ended.set()
            return ToolServerUnavailable(
                f"the server of {self._name} ended, or the connection broke, before {tool!r} was answered: "
                f"{error.message}"
            )
        if error.code not in (types.INVALID_PARAMS, types.METHOD_NOT_FOUND):
            link.is_doubtful = True  # it may have forgotten the session
        return ToolError(f"the server of {self._name} refused {tool!r}: {error.message} (code {error.code})")

    def _no_answer(self, link: _Link, tool: str, timeout: float) -> RequestTimeout:
        hint = f"; it wrote what is no message: {link.noise}" if link.noise else ""
        link.noise = ""
        return RequestTimeout(f"{tool!r} of {self._name} was not answered within {max(timeout, 0):.3g} s{hint}")


class _Link:
    """One connection.

    Attributes:
        client: the package's client.
        ended: is set when the server has ended it, or it is to be ended.
        is_doubtful: whether the server left a call without an answer.
        noise: what the server wrote that is no message.
    """

    client: Client

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.is_doubtful = False
        self.noise = ""


def _give_up(owner: asyncio.Task[Any] | None, ready: asyncio.Future[_Link]) -> None:
    if owner is not None and not ready.done():
        owner.cancel()


def _left(until: float) -> float:
    return max(until - time.monotonic(), 0.001)


def _first(error: BaseException) -> Exception:
    """Return the first error of a group, in which the package's task groups wrap every error."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


async def _all_tools(client: Client) -> list[types.Tool]:
    found: list[types.Tool] = []
    cursor = None
    for _ in range(_MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        if (cursor := page.next_cursor) is None:
            break
    return found


def _text(content: list[types.ContentBlock]) -> str:
    return "\n".join(each.text for each in content if isinstance(each, types.TextContent))


def _value(result: types.CallToolResult) -> JSON:
    if result.structured_content is not None:
        structured: JSON = result.structured_content
        return structured
    if len(result.content) == 1 and isinstance(result.content[0], types.TextContent):
        return result.content[0].text
    return [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in result.content]
