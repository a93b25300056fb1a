"""The middleware around all protocols: the host's name, the size and the pace of requests, and who asks."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from waooaw_celery.edges.access.authentication import Authentication
from waooaw_celery.edges.protection.depth import depth_of
from waooaw_celery.edges.protection.failures import WINDOW_SECONDS, Failures
from waooaw_celery.errors import NotPermitted, StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: A name or an address, and perhaps a port.
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
#: Largest headers of a request. The server bounds only those that do not arrive at once.
MAX_HEADER_BYTES = 32 * 1024
#: What each answer says: nothing of it may be kept, or be taken for another type than it says.
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
#: Methods that change nothing. Only they may do without authentication.
_SAFE_METHODS = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds on what arrives at an edge.

    Attributes:
        max_body_bytes: largest body of a request.
        max_depth: how deep arrays and objects of JSON may be nested in each other.
        body_seconds: longest time that a client may take to send the body.
        max_requests: requests and streams that are open at the same time, of all clients.
        max_requests_each: the same, of one principal.
    """

    max_body_bytes: int = 4 * 1024 * 1024
    max_depth: int = 64
    body_seconds: float = 20.0
    max_requests: int = 1000
    max_requests_each: int = 500


class Protection:
    """Lets a request through to a protocol only if it may be there. The principal is ``request.state.principal``.

    Args:
        app: the protocols.
        authentication: finds out who asks.
        hosts: the names of this edge, without ports; empty: any. A request to another name is refused: a page of
            another site can make its own name point to this computer (DNS rebinding).
        bounds: bounds on what arrives.
        open_paths: paths within the edge that can be read without authentication. One that begins with
            ``/.well-known/`` also stands for each path that ends with it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authentication: Authentication,
        hosts: Collection[str],
        bounds: Bounds,
        open_paths: Collection[str] = (),
    ) -> None:
        self._app, self._authentication, self._bounds = app, authentication, bounds
        self._hosts = frozenset(host.lower() for host in hosts)
        self._open_paths = frozenset(open_paths)
        self._open_ends = tuple(path for path in open_paths if path.startswith("/.well-known/"))
        self._failures = Failures()
        self._open: dict[str, int] = {}
        self._all_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "websocket":  # no protocol of an edge needs one, and what follows is about requests
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for header, value in _HEADERS.items():
                    headers.setdefault(header, value)
            await send(message)

        found = self._wrong_request(connection) or await self._principal(connection)
        if isinstance(found, Response):
            await found(scope, receive, send_with_headers)
            return
        if (refusal := self._enter(found)) is not None:
            await refusal(scope, receive, send_with_headers)
            return
        try:
            body = await self._body(connection, receive)
            if isinstance(body, Response):
                await body(scope, receive, send_with_headers)
            else:
                await self._app(scope, replayed(body, receive), send_with_headers)
        finally:
            self._leave(found)

    def _is_open(self, scope: Scope) -> bool:
        """Whether a request needs no authentication."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        return scope["method"] in _SAFE_METHODS and (path in self._open_paths or path.endswith(self._open_ends))

    def _wrong_request(self, connection: HTTPConnection) -> Response | None:
        """Return the answer to a request that is ambiguous, or comes by a wrong name or from a page elsewhere."""
        headers = connection.headers
        if sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEADER_BYTES:
            return refused(431, f"the headers of the request have more than {MAX_HEADER_BYTES} bytes")
        if len(headers.getlist("host")) > 1 or len(headers.getlist("content-length")) > 1:
            return refused(400, "the request has a header twice that must be there once")
        if "transfer-encoding" in headers and "content-length" in headers:  # proxies disagree on its end
            return refused(400, "the request has both Transfer-Encoding and Content-Length")
        return self._wrong_name(connection)

    def _wrong_name(self, connection: HTTPConnection) -> Response | None:
        """Return the answer to a request that comes by a wrong name, or from a page of another site."""
        host = connection.headers.get("host", "")
        found = _HOST.fullmatch(host)
        if found is None or (self._hosts and found[1].strip("[]").lower() not in self._hosts):
            return refused(421, "this edge has another name: start it with --allow-host for this one")
        origin = connection.headers.get("origin")
        if origin is not None and origin.lower().partition("://")[2] != host.lower():
            return refused(403, "a page of another site sent this request")
        return None

    async def _principal(self, connection: HTTPConnection) -> str | Response:
        """Return the name of who asks, or the answer to a request that does not show it."""
        if self._is_open(connection.scope):
            return ""
        try:
            if self._authentication.may_block:
                found = await run_in_threadpool(self._authentication.authenticate, connection)
            else:
                found = self._authentication.authenticate(connection)
        except StoreUnavailable as error:
            return refused(503, str(error), {"Retry-After": "5"})
        except NotPermitted as error:
            return self._wrong_credentials(connection, str(error))
        if found is None:
            return refused(401, "this edge needs an API key or a bearer token", {"WWW-Authenticate": "Bearer"})
        connection.scope.setdefault("state", {})["principal"] = found
        return found.name

    def _wrong_credentials(self, connection: HTTPConnection, why: str) -> Response:
        """Return the answer to wrong credentials.

        Right ones are accepted however many wrong ones came from the same address: behind one address there may
        be many clients, and nobody guesses a key of 256 bits.
        """
        client = connection.client.host if connection.client is not None else ""
        if self._failures.note(client):
            return refused(429, f"too many wrong credentials: {why}", {"Retry-After": str(int(WINDOW_SECONDS))})
        return refused(401, why, {"WWW-Authenticate": 'Bearer error="invalid_token"'})

    def _enter(self, name: str) -> Response | None:
        """Count a request as open; returns the answer if too many are."""
        mine = self._open.get(name, 0)
        if mine >= self._bounds.max_requests_each:
            return refused(429, "you have too many open requests at this edge", {"Retry-After": "1"})
        if self._all_open >= self._bounds.max_requests:
            return refused(503, "too many requests are open at this edge", {"Retry-After": "1"})
        self._open[name] = mine + 1
        self._all_open += 1
        return None

    def _leave(self, name: str) -> None:
        self._all_open -= 1
        self._open[name] -= 1
        if not self._open[name]:
            del self._open[name]

    async def _body(self, connection: HTTPConnection, receive: Receive) -> bytes | Response:
        """Return the whole body, or the answer to a request whose body is too large, too slow or too deep."""
        length = connection.headers.get("content-length", "0")
        limit = self._bounds.max_body_bytes
        if not length.isascii() or not length.isdigit():
            return refused(400, "Content-Length must be a number")
        if len(length) > 18 or int(length) > limit:  # Python does not read a number of 5000 digits
            return _too_large(limit)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._bounds.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":  # the client has gone: the answer reaches nobody
                        return refused(400, "the client went away before its request was whole")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        return _too_large(limit)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            return refused(408, f"the request did not arrive within {self._bounds.body_seconds:g} s")
        body = b"".join(parts)
        if depth_of(body) > self._bounds.max_depth:
            return refused(400, f"the JSON is nested more than {self._bounds.max_depth} deep")
        if body and "json" in connection.headers.get("content-type", "").lower() and not _is_utf8(body):
            return refused(400, "JSON must be encoded as UTF-8")
        return body


def refused(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Return a refusal as problem details (RFC 9457).

    Args:
        status: the HTTP status.
        detail: why, and what to do.
        headers: more headers.
    """
    body = {"type": "about:blank", "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def _is_utf8(body: bytes) -> bool:
    """Whether JSON is UTF-8, as RFC 8259 has it. Python would also read UTF-16, in which ``depth_of`` is wrong."""
    if b"\x00" in body:
        return False
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _too_large(limit: int) -> Response:
    return refused(413, f"the request has more than {limit} bytes")


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a function that gives the whole body once, and then what the client does.

    Args:
        body: the body, which was read.
        receive: how the client's messages are received.
    """
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
