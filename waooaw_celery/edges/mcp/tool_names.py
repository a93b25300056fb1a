"""The names of tools: a method of an agent has the name ``agent-method``, and back.

The name of an agent may have dashes and that of a method has none, so the last dash separates them. Names of the
generic tools have no dash.
"""

from __future__ import annotations

import re

from waooaw_celery.errors import UnknownMethod

#: Which names a tool may have: see https://modelcontextprotocol.io/specification/2025-11-25/server/tools#tool-names
_TOOL_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
SEPARATOR = "-"


def tool_name(agent: str, method: str) -> str | None:
    """Return the name of the tool of a method or workflow; None: MCP allows no such name.

    Args:
        agent: the agent.
        method: its method or workflow.
    """
    name = f"{agent}{SEPARATOR}{method}"
    return name if _TOOL_NAME.fullmatch(name) else None


def operation_named(name: str) -> tuple[str, str]:
    """Return the agent and the method that a tool stands for.

    Args:
        name: the name of the tool.

    Raises:
        UnknownMethod: it is no such name.
    """
    agent, _, method = name.rpartition(SEPARATOR)
    if not agent or not method:
        raise UnknownMethod(f"there is no tool {name!r:.150}: ask for the list of tools (tools/list)")
    return agent, method


def method_for(tool: str) -> str:
    """Return the name of the method of ours that stands for a tool of an outside server.

    Args:
        tool: the tool's name. What the name of a method cannot have becomes ``_``.
    """
    name = re.sub(r"[^A-Za-z0-9_]", "_", tool)
    return name if name[:1].isalpha() or name[:1] == "_" else f"_{name}"
