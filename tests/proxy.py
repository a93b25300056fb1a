"""A TCP proxy that does to a line what networks do: it freezes, is cut, is slow, and loses an answer."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_CHUNK = 65536


@dataclass(eq=False)
class _Line:
    """One connection through the proxy, and what is wrong with it."""

    client: socket.socket
    server: socket.socket
    flows: threading.Event = field(default_factory=threading.Event)
    loses_answer: bool = False

    def close(self) -> None:
        self.flows.set()
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """A proxy in front of a server.

    Args:
        server: URL of the server, whatever its scheme: ``//host:port`` is taken, or the path of a socket.
        tls: speaks TLS to the clients, with this certificate; the server is spoken to without.
    """

    def __init__(self, server: str, tls: ssl.SSLContext | None = None) -> None:
        self._server = urlsplit(server)
        self._tls = tls
        self._lines: list[_Line] = []
        self._lock = threading.Lock()
        self._seconds = 0.0
        self._frozen = False
        self._marker = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.lost = threading.Event()  #: set when an answer was lost

        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._lines)

    def freeze(self, *, also_new: bool = False) -> None:
        """Pass on nothing any more, either way, and close nothing: the line is half open, as nobody is told.

        Args:
            also_new: whether connections that are opened later are frozen too, until it is thawed.
        """
        self._frozen = also_new
        with self._lock:
            for line in self._lines:
                line.flows.clear()

    def thaw(self) -> None:
        """Pass on what has come meanwhile, and go on."""
        self._frozen = False
        with self._lock:
            for line in self._lines:
                line.flows.set()

    def cut(self) -> None:
        """Close all connections."""
        with self._lock:
            lines, self._lines = self._lines, []
        for line in lines:
            line.close()

    def delay(self, seconds: float) -> None:
        """From now on, pass on each piece so much later, either way."""
        self._seconds = seconds

    def lose_answer(self, request: bytes) -> None:
        """Pass on the next request that contains this, and cut its connection in place of the answer."""
        self.lost.clear()
        self._marker = request

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # or whoever accepts would not wake up
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
        except OSError:  # a client that does not trust the certificate, or a server that is away
            client.close()
            return
        line = _Line(client, server)
        if not self._frozen:
            line.flows.set()
        with self._lock:
            self._lines.append(line)
        for from_client in (True, False):
            threading.Thread(target=self._pass_on, args=(line, from_client), daemon=True).start()

    def _dial(self) -> socket.socket:
        if self._server.port is not None:
            return socket.create_connection((str(self._server.hostname), self._server.port), timeout=None)
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._server.path)
        return server

    def _pass_on(self, line: _Line, from_client: bool) -> None:
        source, target = (line.client, line.server) if from_client else (line.server, line.client)
        with suppress(OSError):  # either end was closed, and so is the other
            while piece := source.recv(_CHUNK):
                time.sleep(self._seconds)
                line.flows.wait()
                if from_client and self._marker and self._marker in piece:
                    self._marker, line.loses_answer = b"", True
                elif not from_client and line.loses_answer:
                    self.lost.set()
                    break
                target.sendall(piece)
        with self._lock:
            if line in self._lines:
                self._lines.remove(line)
        line.close()


@contextmanager
def proxied(server: str, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """Run a proxy in front of a server while the block runs."""
    proxy = Proxy(server, tls)
    try:
        yield proxy
    finally:
        proxy.close()
