"""A TCP proxy that fails as networks do: it freezes, cuts connections, delays, and loses replies."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

_CHUNK = 65536
_DEFAULT_PORTS = {"redis": 6379, "amqp": 5672}


@dataclass(eq=False)
class _ProxiedConnection:
    """One connection through the proxy, and how it fails."""

    client: socket.socket
    server: socket.socket
    flows: threading.Event = field(default_factory=threading.Event)
    loses_reply: bool = False

    def close(self) -> None:
        self.flows.set()
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """A proxy in front of a server.

    Args:
        server: The server's URL of any scheme, with a host and port or the path of a socket.
        tls: The certificate for TLS between the clients and the proxy. The proxy reaches the server without TLS.
    """

    def __init__(self, server: str, tls: ssl.SSLContext | None = None) -> None:
        self._server = urlsplit(server)
        self._tls = tls
        self._connections: list[_ProxiedConnection] = []
        self._lock = threading.Lock()
        self._seconds = 0.0
        self._frozen = False
        self._marker = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.lost = threading.Event()  #: set when a reply was lost

        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """The server's URL with the host and port of the proxy; the database and the user are the server's."""
        server = self._server
        if server.hostname is None:  # the path is that of a socket
            query = parse_qs(server.query)
            [database] = query.get("virtual_host") or query.get("db") or ["0"]
            return f"redis://127.0.0.1:{self.port}/{database.lstrip('/')}"
        user, at, _ = server.netloc.rpartition("@")
        return server._replace(netloc=f"{user}{at}127.0.0.1:{self.port}").geturl()

    @property
    def connections(self) -> int:
        """The number of connections."""
        return len(self._connections)

    def freeze(self, *, also_new: bool = False) -> None:
        """Stop passing data in either direction, and close nothing: the connections are half open.

        Args:
            also_new: Whether to freeze also connections that are opened later, until ``thaw``.
        """
        self._frozen = also_new
        with self._lock:
            for connection in self._connections:
                connection.flows.clear()

    def thaw(self) -> None:
        """Pass on the data that has arrived meanwhile, and continue."""
        self._frozen = False
        with self._lock:
            for connection in self._connections:
                connection.flows.set()

    def cut(self) -> None:
        """Close all connections."""
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()

    def delay(self, seconds: float) -> None:
        """Delay each further piece of data by some seconds, in both directions."""
        self._seconds = seconds

    def lose_answer(self, request: bytes) -> None:
        """Pass on the next request that contains these bytes, and close its connection before the reply."""
        self.lost.clear()
        self._marker = request

    def close(self) -> None:
        """Stop the proxy."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # else accept() would not return
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._open, args=(client,), daemon=True).start()

    def _open(self, client: socket.socket) -> None:
        try:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            server = self._dial()
        except OSError:  # the client does not trust the certificate, or the server is down
            client.close()
            return
        connection = _ProxiedConnection(client, server)
        if not self._frozen:
            connection.flows.set()
        with self._lock:
            self._connections.append(connection)
        for from_client in (True, False):
            threading.Thread(target=self._pass_on, args=(connection, from_client), daemon=True).start()

    def _dial(self) -> socket.socket:
        if self._server.hostname is not None:
            port = self._server.port or _DEFAULT_PORTS[self._server.scheme]
            return socket.create_connection((self._server.hostname, port), timeout=None)
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._server.path)
        return server

    def _pass_on(self, connection: _ProxiedConnection, from_client: bool) -> None:
        source, target = (
            (connection.client, connection.server) if from_client else (connection.server, connection.client)
        )
        with suppress(OSError):  # one end was closed: close the other too
            while piece := source.recv(_CHUNK):
                time.sleep(self._seconds)
                connection.flows.wait()
                if from_client and self._marker and self._marker in piece:
                    self._marker, connection.loses_reply = b"", True
                elif not from_client and connection.loses_reply:
                    self.lost.set()
                    break
                target.sendall(piece)
        with self._lock:
            if connection in self._connections:
                self._connections.remove(connection)
        connection.close()


@contextmanager
def proxied(server: str, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """Run a proxy in front of a server while the block runs."""
    proxy = Proxy(server, tls)
    try:
        yield proxy
    finally:
        proxy.close()
