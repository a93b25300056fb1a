"""A server of tools made with the package ``mcp``: ``mcp_tool_server.py <file of effects> [<port of HTTP>]``."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("outside")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool(name="read-file")
def read_file(path: str) -> dict[str, Any]:
    """Read a file."""
    return {"path": path, "text": "hello"}


@server.tool()
def fail(text: str) -> str:
    """Fail with a text."""
    raise ToolError(text)


@server.tool()
def pid() -> int:
    """Return the id of this process."""
    return os.getpid()


@server.tool()
def big(size: int) -> str:
    """Return a long text."""
    return "x" * size


@server.tool()
async def hang() -> str:
    """Never answer."""
    await asyncio.sleep(3600)
    return "never"


@server.tool()
async def block() -> str:
    """Never answer, and let nothing else be answered."""
    time.sleep(3600)
    return "never"


if __name__ == "__main__":
    with Path(sys.argv[1]).open("a") as file:
        file.write(f"{os.getpid()}\n")
    if len(sys.argv) > 2:
        server.run("streamable-http", port=int(sys.argv[2]))
    else:
        server.run("stdio")
