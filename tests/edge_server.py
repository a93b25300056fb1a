"""An edge that is really served, by uvicorn on a free port, for the tests of the edges."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from support import until

from waooaw_celery.cli.base.web_server import listen
from waooaw_celery.edges.protection.connections import BoundedProtocol


@dataclass(frozen=True)
class Served:
    """A served application.

    Attributes:
        url: its address, without a slash at the end.
        port: its port.
        server: the server.
    """

    url: str
    port: int
    server: uvicorn.Server


@contextmanager
def served(asgi: Any) -> Iterator[Served]:
    """Serve an ASGI application during the block, with the connections of `waooaw serve`."""
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        asgi,
        http=BoundedProtocol,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=3,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), "the edge")
        assert server.started
        port = listener.getsockname()[1]
        yield Served(f"http://127.0.0.1:{port}", port, server)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()
