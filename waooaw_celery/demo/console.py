"""The console of the demo, which shows what the demo has just done."""

from __future__ import annotations

import importlib.util
import socket
from urllib.parse import quote

from waooaw_celery.demo.processes import SYSTEM, Stack
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.testing.embedded import free_port

#: Seconds that the console may take to start.
START_SECONDS = 30.0


def has_console() -> bool:
    """Whether the extra [console] is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("starlette", "uvicorn", "authlib"))


def check_console() -> None:
    """Check that the console can run.

    Raises:
        ConfigurationError: its extra is not installed.
    """
    if not has_console():
        raise ConfigurationError("the console is not installed: run `pip install 'waooaw-celery[console]'`")


def start_console(stack: Stack) -> str:
    """Start the console on a free port, with changes allowed, and return its address once it answers."""
    port = free_port()
    stack.start("console", ["-A", SYSTEM, "waooaw", "console", f"--port={port}", "--allow-changes"])

    def answers() -> bool:
        with socket.socket() as client:
            client.settimeout(0.5)
            return client.connect_ex(("127.0.0.1", port)) == 0

    stack.wait_until(answers, "starting the console", START_SECONDS)
    return f"http://127.0.0.1:{port}"


def thread_url(address: str, id_: str) -> str:
    """Return the address of the picture of a message, its causes and what it caused."""
    name = quote(id_, safe="")
    return f"{address}/conversations/{name}?message={name}"


def message_url(address: str, id_: str) -> str:
    """Return the address of a message's page."""
    return f"{address}/messages/{quote(id_, safe='')}"
