"""A small HTTP server in a thread: `/metrics`, `/health/live`, `/health/ready`."""

from __future__ import annotations

import json
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Seconds within which a client must send its request and read the answer.
CLIENT_SECONDS = 10.0
#: Seconds that stopping waits for the thread.
STOP_SECONDS = 5.0


class Reply(NamedTuple):
    """What the server answers.

    Attributes:
        status: the HTTP status.
        body: the body.
        content_type: its media type.
    """

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


def health_reply(problems: dict[str, str]) -> Reply:
    """Return the answer of a health check: 200 without a problem, and 503 with the problems by name."""
    body = {"status": "fail" if problems else "ok", "problems": problems}
    return Reply(503 if problems else 200, json.dumps(body).encode() + b"\n", "application/json")


class MonitoringServer:
    """Answers GET and HEAD on a port, each request in its own thread.

    Args:
        routes: the function that answers each path. One that raises is answered with 500 and logged.
        port: the port; 0: a free one.
        host: the address to listen on.

    Raises:
        ConfigurationError: the port cannot be used.

    Example:
        >>> server = MonitoringServer({"/health/live": lambda: Reply(200, b"ok")}, port=0, host="127.0.0.1")
        >>> server.start()
        >>> server.port
        40123
    """

    def __init__(self, routes: Mapping[str, Callable[[], Reply]], port: int, host: str = "0.0.0.0") -> None:  # noqa: S104 - a probe comes from another computer
        try:
            self._server = _Server((host, port), _Handler)
        except OSError as error:
            raise ConfigurationError(
                f"port {port} of {host} cannot be used for health and metrics: {error}. "
                "Set another waooaw_health_port, or end the process that uses this one"
            ) from error
        self._server.routes = dict(routes)
        _servers.add(self._server)
        self._thread = threading.Thread(target=self._server.serve_forever, name="waooaw-monitoring", daemon=True)

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End the server and give its port back."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(STOP_SECONDS)
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    routes: Mapping[str, Callable[[], Reply]]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the error of a connection, such as a client that went away, in one line."""
        logger.info("a client of the monitoring port was not served: %r", sys.exception())


#: The servers of this process.
_servers: weakref.WeakSet[_Server] = weakref.WeakSet()


def _close_in_child() -> None:
    """Close the ports in a forked process: one that outlives a killed worker would keep them from the next."""
    for server in list(_servers):
        server.socket.close()
    _servers.clear()


os.register_at_fork(after_in_child=_close_in_child)


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_SECONDS
    server: _Server

    def do_GET(self) -> None:
        """Answer with the body."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        function = self.server.routes.get(path)
        if function is None:
            known = ", ".join(sorted(self.server.routes))
            reply = Reply(404, f"there is no such page; there are: {known}\n".encode())
        else:
            try:
                reply = function()
            except Exception:
                logger.exception("the answer to GET %s could not be made", path)
                reply = Reply(500, b"the answer could not be made; the log of the process says why\n")
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(reply.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the standard library
        """Log no line for each request."""

    def version_string(self) -> str:
        """Tell no versions."""
        return "waooaw"
