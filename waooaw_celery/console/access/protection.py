"""The middleware around all pages: the host's name, the origin of changes, who asks, and security headers.

The headers follow OWASP's HTTP Headers Cheat Sheet, the tokens its Cross-Site Request Forgery Prevention Cheat
Sheet (signed double-submit cookie).
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from waooaw_celery.console.access.authentication import Authentication, fingerprint
from waooaw_celery.console.access.roles import Person

#: Name of the cookie that a change needs beside the token of its form.
CSRF_COOKIE = "waooaw_console"
#: The name of the form's field.
CSRF_FIELD = "csrf"
#: A name or an address, and perhaps a port. Starlette builds the addresses of pages from it.
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with "no-referrer", Chromium sends forms with the origin "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Protection:
    """Lets a request through to the pages only if it may be there.

    Args:
        app: the pages.
        authentication: finds out who asks.
        hosts: the names of this console, without ports. A request to another name is refused: a page of another
            site can make its own name point to this computer (DNS rebinding).
        is_secure: whether browsers reach it by HTTPS.
        secret: the key of the tokens.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authentication: Authentication,
        hosts: Collection[str],
        is_secure: bool,
        secret: bytes,
    ) -> None:
        self._app = app
        self._authentication = authentication
        self._hosts = frozenset(host.lower() for host in hosts)
        self._is_secure = is_secure
        self._secret = secret
        self._open_paths = frozenset(str(getattr(route, "path", "")) for route in authentication.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        nonce = connection.cookies.get(CSRF_COOKIE) or ""
        is_new = len(nonce) != 43
        nonce = secrets.token_urlsafe(32) if is_new else nonce

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(MutableHeaders(scope=message), scope, nonce if is_new else None)
            await send(message)

        refusal = self._refusal(connection)
        if refusal is None and scope["path"] not in self._open_paths and not _is_public(scope["path"]):
            found = await run_in_threadpool(self._authentication.identify, connection)
            if isinstance(found, Response):
                refusal = found
            else:
                scope.setdefault("state", {}).update(person=found, csrf=self._token(nonce, found))
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _refusal(self, connection: HTTPConnection) -> Response | None:
        """Return the answer to a request that comes by a wrong name or from another site."""
        found = _HOST.fullmatch(connection.headers.get("host", ""))
        if found is None or found[1].strip("[]").lower() not in self._hosts:
            return PlainTextResponse(
                "This console has another name: start it with --allow-host for this one.", 400
            )
        if connection.scope["method"] in _SAFE_METHODS:
            return None
        origin = connection.headers.get("origin")
        site = connection.headers.get("sec-fetch-site")
        if site not in (None, "same-origin") or (origin is not None and not self._is_own(origin, connection)):
            return PlainTextResponse("Another site sent this form. Nothing was changed.", 403)
        return None

    def _is_own(self, origin: str, connection: HTTPConnection) -> bool:
        return origin.lower().partition("://")[2] == connection.headers.get("host", "").lower()

    def _token(self, nonce: str, person: Person) -> str:
        return fingerprint(self._secret, "csrf", nonce, person.name)

    def _add_headers(self, headers: MutableHeaders, scope: Scope, nonce: str | None) -> None:
        for name, value in _HEADERS.items():
            headers[name] = value
        if not _is_public(scope["path"]):
            headers["Cache-Control"] = "no-store"
        if self._is_secure:
            headers["Strict-Transport-Security"] = "max-age=31536000"
        if nonce is not None:
            secure = "; Secure" if self._is_secure else ""
            headers.append("Set-Cookie", f"{CSRF_COOKIE}={nonce}; Path=/; HttpOnly; SameSite=Lax{secure}")


def _is_public(path: str) -> bool:
    """Whether a path has only styles and scripts, without data."""
    return path.startswith("/static/") or path == "/diagrams.css"


def has_token(state: Any, form: Any) -> bool:
    """Whether a form has the token of the person who sends it."""
    given = form.get(CSRF_FIELD)
    return isinstance(given, str) and hmac.compare_digest(given.encode(), str(state.csrf).encode())


def own_path(path: str) -> str:
    """Return the path of a URL if it leads to this site, or else ``/``. Browsers read a backslash as a slash."""
    found = urlsplit(path).path.replace("\\", "/")
    return found if found.startswith("/") and not found.startswith("//") else "/"
