"""Finds out who makes a request: nobody asks on loopback; basic authentication; a proxy's header.

OpenID Connect is in ``oidc.py``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network

from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute

from waooaw_celery.cli.base.trusted_networks import is_within
from waooaw_celery.console.access.passwords import User, hash_password, is_password
from waooaw_celery.console.access.roles import Person, Role, roles_of

#: Wrong passwords of one client within ``WINDOW_SECONDS`` after which it is not listened to for that time.
MAX_FAILURES, WINDOW_SECONDS = 10, 60.0
#: Clients whose wrong passwords are counted, and right passwords that are remembered.
_MAX_REMEMBERED = 10_000
#: Seconds for which a right password is remembered, so that each request does not pay for scrypt.
_REMEMBER_SECONDS = 300.0


class Authentication(ABC):
    """Finds out who makes a request."""

    #: Additional routes, such as those of a login. They are served without authentication.
    routes: Sequence[BaseRoute] = ()
    #: Path of the page that ends a session; None: there is no session.
    logout_path: str | None = None

    @abstractmethod
    def identify(self, connection: HTTPConnection) -> Person | Response:
        """Return who makes a request, or the answer that asks for it. It may take a while, and blocks."""


class NoAuthentication(Authentication):
    """Everybody who reaches the console is one person. Only for a console that listens on loopback.

    Args:
        name: the name of the person who started it.
    """

    def __init__(self, name: str) -> None:
        self._person = Person(name=name, roles=frozenset(Role))

    def identify(self, connection: HTTPConnection) -> Person | Response:
        """Return the person who started the console."""
        return self._person


class BasicAuthentication(Authentication):
    """Names and passwords, by HTTP's basic authentication (RFC 7617).

    Args:
        users: the users by name.
    """

    def __init__(self, users: Mapping[str, User]) -> None:
        self._users = users
        self._failures = _Failures()
        self._remembered: OrderedDict[bytes, float] = OrderedDict()
        self._secret = os.urandom(32)
        self._lock = threading.Lock()
        #: Checked for an unknown name, so that the time of the answer does not tell which names exist.
        self._nobody = hash_password(os.urandom(16).hex())

    def identify(self, connection: HTTPConnection) -> Person | Response:
        """Return the user, or ask for the password."""
        header = connection.headers.get("authorization")
        if header is None:
            return _ask()
        client = connection.client.host if connection.client is not None else ""
        if self._failures.too_many(client):
            return _wait()
        name, password = _credentials(header)
        user = self._users.get(name)
        is_right = self._is_right(header, password, user, client)
        if is_right and user is not None:
            return user.person
        return _wait() if is_right is None else _ask()

    def _is_right(self, header: str, password: str, user: User | None, client: str) -> bool | None:
        """Whether a password is right; None: its client must wait."""
        digest = hmac.digest(self._secret, header.encode(), "sha256")
        now = time.monotonic()
        with self._lock:
            until = self._remembered.get(digest, 0.0)
        if user is not None and until > now:
            return True
        # One at a time: each takes 128 MiB, and a flood of wrong passwords must not take all memory.
        with _VERIFYING:
            if self._failures.too_many(client):  # others that it sent at the same time were wrong
                return None
            right = is_password(password, self._nobody if user is None else user.hashed)
            if user is None or not right:
                self._failures.note(client)
                return False
        with self._lock:
            self._remembered[digest] = now + _REMEMBER_SECONDS
            while len(self._remembered) > _MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return True


class ProxyAuthentication(Authentication):
    """The name that a trusted proxy writes into a header, once it has authenticated the person.

    Args:
        networks: the networks of the proxies. The header is refused from everywhere else.
        user_header: the header with the name, such as ``X-Forwarded-User``.
        groups_header: the header with the person's groups, separated by commas; None: there is none.
        grants: who has which role.
    """

    def __init__(
        self,
        networks: Sequence[IPv4Network | IPv6Network],
        user_header: str,
        groups_header: str | None,
        grants: Mapping[Role, Collection[str]],
    ) -> None:
        self._networks = networks
        self._user_header, self._groups_header = user_header, groups_header
        self._grants = grants

    def identify(self, connection: HTTPConnection) -> Person | Response:
        """Return the person whom the proxy names."""
        client = connection.client
        if not is_within(client.host if client is not None else None, self._networks):
            return PlainTextResponse("Only the trusted proxy may connect.", 403)
        names = connection.headers.getlist(self._user_header)
        if len(names) != 1 or not names[0].strip():
            return PlainTextResponse(f"The proxy did not send one {self._user_header}.", 401)
        groups = connection.headers.getlist(self._groups_header) if self._groups_header is not None else []
        if len(groups) > 1:  # one of them may be the client's own
            return PlainTextResponse(f"The proxy sent more than one {self._groups_header}.", 401)
        name, listed = names[0].strip(), ",".join(groups).split(",")
        return granted(name, [each.strip() for each in listed if each.strip()], self._grants)


def granted(name: str, groups: Sequence[str], grants: Mapping[Role, Collection[str]]) -> Person | Response:
    """Return a person with the granted roles, or a refusal if there is none."""
    roles = roles_of([name, *groups], grants)
    if not roles:
        return PlainTextResponse(f"{name} has no role in this console.", 403)
    return Person(name=name, roles=roles)


class _Failures:
    """Counts the wrong passwords of each client."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, list[float]] = OrderedDict()
        self._lock = threading.Lock()

    def too_many(self, client: str) -> bool:
        with self._lock:
            return len(self._recent(client)) >= MAX_FAILURES

    def note(self, client: str) -> None:
        with self._lock:
            self._times[client] = [*self._recent(client), time.monotonic()]
            self._times.move_to_end(client)
            while len(self._times) > _MAX_REMEMBERED:
                self._times.popitem(last=False)

    def _recent(self, client: str) -> list[float]:
        since = time.monotonic() - WINDOW_SECONDS
        return [each for each in self._times.get(client, ()) if each > since]


_VERIFYING = threading.Lock()


def _wait() -> Response:
    headers = {"Retry-After": str(int(WINDOW_SECONDS))}
    return PlainTextResponse("Too many wrong passwords. Wait a minute.", 429, headers)


def _ask() -> Response:
    headers = {"WWW-Authenticate": 'Basic realm="waooaw console", charset="UTF-8"'}
    return PlainTextResponse("A name and a password are needed.", 401, headers)


def _credentials(header: str) -> tuple[str, str]:
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return name, password


def fingerprint(secret: bytes, *parts: str) -> str:
    """Return a keyed digest of some texts, as hexadecimal digits."""
    return hmac.new(secret, "\x00".join(parts).encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
