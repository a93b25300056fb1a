"""The middleware around all protocols: the host's name, the size and the pace of requests, and who asks."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from waooaw_celery.edges.access.authentication import Authentication
from waooaw_celery.errors import NotPermitted
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: A name or an address, and perhaps a port.
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
#: Wrong credentials of one client within ``WINDOW_SECONDS`` after which it is not listened to for that time.
MAX_FAILURES, WINDOW_SECONDS = 20, 60.0
#: Clients whose wrong credentials are counted.
_MAX_REMEMBERED = 10_000


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
        open_paths: paths, or the ends of paths, that need no authentication.
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
        self._open_paths = tuple(open_paths)
        self._failures = _Failures()
        self._open: dict[str, int] = {}
        self._all_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        refusal = self._wrong_name(connection)
        name = ""
        if refusal is None and not scope["path"].endswith(self._open_paths or ("\x00",)):
            found = await self._principal(connection)
            if isinstance(found, Response):
                refusal = found
            else:
                name = found
        if refusal is None and not self._enter(name):
            refusal = refused(503, "too many requests are open at this edge", {"Retry-After": "1"})
            name = "\x00"
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        try:
            body = await self._body(connection, receive)
            if isinstance(body, Response):
                await body(scope, receive, send)
                return
            await self._app(scope, _replayed(body, receive), send)
        finally:
            self._leave(name)

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
        client = connection.client.host if connection.client is not None else ""
        if self._failures.too_many(client):
            return refused(
                429, "too many wrong credentials: wait a minute", {"Retry-After": str(int(WINDOW_SECONDS))}
            )
        try:
            found = await run_in_threadpool(self._authentication.authenticate, connection)
        except NotPermitted as error:
            self._failures.note(client)
            return refused(401, str(error), {"WWW-Authenticate": 'Bearer error="invalid_token"'})
        if found is None:
            return refused(401, "this edge needs an API key or a bearer token", {"WWW-Authenticate": "Bearer"})
        connection.scope.setdefault("state", {})["principal"] = found
        return found.name

    def _enter(self, name: str) -> bool:
        mine = self._open.get(name, 0)
        if self._all_open >= self._bounds.max_requests or mine >= self._bounds.max_requests_each:
            return False
        self._open[name] = mine + 1
        self._all_open += 1
        return True

    def _leave(self, name: str) -> None:
        self._all_open -= 1
        self._open[name] -= 1
        if not self._open[name]:
            del self._open[name]

    async def _body(self, connection: HTTPConnection, receive: Receive) -> bytes | Response:
        """Return the whole body, or the answer to a request whose body is too large, too slow or too deep."""
        length = connection.headers.get("content-length", "0")
        limit = self._bounds.max_body_bytes
        if not length.isascii() or not length.isdigit() or int(length) > limit:
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


def depth_of(body: bytes) -> int:
    """Return at most how deep brackets in a body are nested. Those within strings do not count.

    It looks at each byte once, so that a parser that recurses never sees what is too deep.
    """
    depth = deepest = 0
    for match in _BRACKETS.finditer(body):
        byte = match[0][:1]
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


#: A bracket, or a string of JSON, in which brackets do not count.
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def _too_large(limit: int) -> Response:
    return refused(413, f"the request has more than {limit} bytes")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a function that gives the whole body once, and then what the client does."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


class _Failures:
    """Counts the wrong credentials of each client."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, list[float]] = OrderedDict()

    def too_many(self, client: str) -> bool:
        return len(self._recent(client)) >= MAX_FAILURES

    def note(self, client: str) -> None:
        self._times[client] = [*self._recent(client), time.monotonic()]
        self._times.move_to_end(client)
        while len(self._times) > _MAX_REMEMBERED:
            self._times.popitem(last=False)

    def _recent(self, client: str) -> list[float]:
        since = time.monotonic() - WINDOW_SECONDS
        return [each for each in self._times.get(client, ()) if each > since]
