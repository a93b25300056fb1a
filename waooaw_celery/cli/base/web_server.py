"""Serves an ASGI application with uvicorn, until it is told to end. It needs an extra with uvicorn."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from waooaw_celery.errors import ConfigurationError

#: Seconds that open answers may take once the server ends.
STOP_SECONDS = 5


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ConfigurationError: the port cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise ConfigurationError(
            f"port {port} of {host} cannot be used: {error}. Give another --port or --host"
        ) from error
    # asyncio sets this only where a socket names its protocol, which those of a listener do not. Without it, the
    # body of an answer waits 40 ms for the client to acknowledge the headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setblocking(False)
    return listener


def serve(
    asgi: Any,
    listener: socket.socket,
    *,
    stop: Callable[[], None],
    tls: tuple[str, str] | None = None,
    ready: Callable[[], None] = lambda: None,
    max_connections: int | None = None,
    protocol: type[asyncio.Protocol] | None = None,
) -> None:
    """Serve an ASGI application until SIGTERM or Ctrl-C.

    Args:
        asgi: the application.
        listener: the socket, of ``listen``.
        stop: ends the answers that never end by themselves; it is called before the server stops.
        tls: the files of the certificate and of its key; None: plain HTTP.
        ready: is called once it answers.
        max_connections: connections and requests beyond which it answers 503; None: no limit.
        protocol: the class of its connections; None: uvicorn's own.

    Raises:
        ConfigurationError: the certificate cannot be used.
    """
    certificate, key = tls or (None, None)
    config = uvicorn.Config(
        asgi,
        http=protocol or "auto",
        log_config=None,
        access_log=False,
        # The client's address is that of the connection: a header could name any.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        limit_concurrency=max_connections,
    )
    try:
        config.load()
    except OSError as error:
        raise ConfigurationError(f"the certificate {certificate} cannot be used: {error}") from error
    # uvicorn raises the signal again once it has stopped; by then there is nothing left to end.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _Server(config, stop, ready).run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    """uvicorn's server, which first ends the answers that never end by themselves."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], None], ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop, self._ready = stop, ready

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._stop()
        super().handle_exit(sig, frame)
