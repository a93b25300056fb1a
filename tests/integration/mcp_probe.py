"""A server of tools that speaks MCP over its standard input and output. PROBE_EFFECTS is a file of its effects."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mcp.server import MCPServer

server = MCPServer("probe")


def effect(line: str) -> str:
    """Append a line to the file of effects."""
    with Path(sys.argv[1]).open("a") as file:
        file.write(line + "\n")
    return line


@server.tool()
def weather(city: str) -> str:
    """Return the weather in a city."""
    return effect(f"weather {city}")


if __name__ == "__main__":
    effect(f"server of {os.getppid()}")
    server.run("stdio")
