"""Serves MCP by standard input and output, for the one client that has started this process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

from mcp.server.stdio import stdio_server

from waooaw_celery.app.app import AgentApp
from waooaw_celery.edges.application import local_principal
from waooaw_celery.edges.gateway.gateway import Gateway
from waooaw_celery.edges.mcp.server import McpServer
from waooaw_celery.edges.protection.bounds import Bounds
from waooaw_celery.edges.protection.depth import depth_of
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_READ_BYTES = 65_536
#: Lines that are read before the server has taken the earlier ones.
_MAX_LINES = 16
#: Seconds in which open calls may be answered once the process must end.
_STOP_SECONDS = 3.0
#: Seconds for writing the last answers.
_WRITE_SECONDS = 0.1


def serve_stdio(app: AgentApp, *, agents: tuple[str, ...], timeout: float) -> None:
    """Serve one client until it closes our standard input, or SIGTERM or Ctrl-C arrives.

    Only messages of the protocol are written to standard output: what else is printed goes to standard error.

    Args:
        app: the application, with a ledger.
        agents: only these agents can be called; empty: all.
        timeout: seconds within which a request must be answered, and a workflow must have ended.

    Raises:
        ConfigurationError: the application has no ledger.
    """
    gateway = Gateway(app, agents)
    asyncio.run(_serve(gateway, timeout))


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Send what is printed in the block, such as by the modules of an application, to standard error."""
    sys.stdout.flush()
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, _STDOUT)
        os.close(kept)


async def _serve(gateway: Gateway, timeout: float) -> None:
    mcp = McpServer(
        gateway,
        timeout=timeout,
        cancel_when_gone=False,
        principal=local_principal(),
        session=uuid4().hex,
    )
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    # The package's own reader waits in a thread that no signal can end, and takes lines of any length.
    lines: Any = _Lines(loop, Bounds())
    async with stdio_server(stdin=lines) as (read, write):
        serving = asyncio.ensure_future(mcp.server.run(read, write, mcp.server.create_initialization_options()))
        waiting = asyncio.ensure_future(ended.wait())
        await asyncio.wait([serving, waiting], return_when=asyncio.FIRST_COMPLETED)
        mcp.calls.stop()
        if not serving.done():
            await mcp.calls.settled(_STOP_SECONDS)
            await asyncio.sleep(_WRITE_SECONDS)
            lines.close()
            await asyncio.wait([serving], timeout=_STOP_SECONDS)
        waiting.cancel()
        if serving.done():
            serving.result()
        else:
            serving.cancel()


class _Lines:
    """The lines of standard input, read by a thread. A line that is too long or too deep is told as an error.

    Args:
        loop: the event loop that takes the lines.
        bounds: bounds on a line.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, bounds: Bounds) -> None:
        self._loop, self._bounds = loop, bounds
        self._queue: asyncio.Queue[str | None] = asyncio.Queue(_MAX_LINES)
        self._descriptor = os.dup(_STDIN)
        devnull = os.open(os.devnull, os.O_RDONLY)  # so that no handler and no child reads the client's messages
        os.dup2(devnull, _STDIN)
        os.close(devnull)
        threading.Thread(target=self._read, name="waooaw-stdin", daemon=True).start()

    def close(self) -> None:
        """End the lines."""
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        line = await self._queue.get()
        if line is None:
            raise StopAsyncIteration
        return line

    def _read(self) -> None:
        """Read until the end. The loop may be gone by then, and the process with it."""
        with suppress(RuntimeError, OSError):
            rest, too_long = b"", False
            while chunk := os.read(self._descriptor, _READ_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._give("" if too_long else self._checked(line))
                    too_long = False
                if len(rest) > self._bounds.max_body_bytes:
                    rest, too_long = b"", True
            if rest:
                self._give(self._checked(rest))
            self._give(None)

    def _checked(self, line: bytes) -> str:
        """Return a line, or an empty one, which is no message, in place of one beyond the bounds."""
        if len(line) > self._bounds.max_body_bytes or depth_of(line) > self._bounds.max_depth:
            logger.warning("a message of the client is too large or too deep", extra={"action": "mcp_refused"})
            return ""
        return line.decode(errors="replace")

    def _give(self, line: str | None) -> None:
        asyncio.run_coroutine_threadsafe(self._queue.put(line), self._loop).result()
