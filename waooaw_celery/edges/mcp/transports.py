"""Ways to an outside MCP server: a process of ours, or an address."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from waooaw_celery.edges.protection.networks import Network
from waooaw_celery.edges.protection.outgoing import public_client
from waooaw_celery.errors import ConfigurationError

#: Makes a connection: an asynchronous context manager with the streams of messages.
Connect = Callable[[], AbstractAsyncContextManager[Any]]
#: Seconds of each step of an HTTP connection. Each call has its own deadline, which is what counts.
_STEP_SECONDS = 3600.0
#: Runs a command that the kernel kills as soon as this process is gone, even if it was killed itself. (A server
#: that reads its standard input until the end ends anyway; one that does not would stay for ever.)
_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):  # it was gone before
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def process(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | os.PathLike[str] | None = None
) -> Connect:
    """Return how to start a server and speak with it by its standard input and output.

    Args:
        command: the program and its arguments.
        env: its environment variables, beside ``PATH``, ``HOME`` and the like; it gets none of the others.
        cwd: its working directory; None: that of this process.
    """

    folder = None if cwd is None else os.fspath(cwd)

    @asynccontextmanager
    async def connect() -> AsyncIterator[Any]:
        program = (env or {}).get("PATH", os.environ.get("PATH", os.defpath))
        if cwd is None and shutil.which(command[0], path=program) is None:
            raise ConfigurationError(f"there is no program {command[0]!r}: install it, or give its whole path")
        arguments = [*command]
        if sys.platform == "linux":
            arguments = [sys.executable, "-I", "-S", "-c", _WITH_PARENT, str(os.getpid()), *command]
        parameters = StdioServerParameters(
            command=arguments[0], args=arguments[1:], env=None if env is None else dict(env), cwd=folder
        )
        # A worker puts a logger in the place of sys.stderr, which a process cannot write to.
        with open(os.devnull, "w") as nowhere:
            async with stdio_client(parameters, errlog=sys.__stderr__ or nowhere) as streams:
                yield streams

    return connect


def address(url: str, *, headers: Mapping[str, str] | None = None, allowed: Sequence[Network] = ()) -> Connect:
    """Return how to connect to a server by streamable HTTP. It reaches no inner network unless that is allowed.

    Args:
        url: its address.
        headers: headers of each request, such as ``Authorization``.
        allowed: inner networks that may be reached.
    """

    @asynccontextmanager
    async def connect() -> AsyncIterator[Any]:
        async with (
            public_client(allowed, timeout=_STEP_SECONDS, headers=dict(headers or {})) as http,
            streamable_http_client(url, http_client=http) as streams,
        ):
            yield streams

    return connect
