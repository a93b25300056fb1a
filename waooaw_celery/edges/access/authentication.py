"""Finds out who makes a request to an edge: by API key, by bearer token, by a trusted proxy, or nobody asks.

An edge on loopback may go without. Several ways can be used at once: each request shows what it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

from starlette.requests import HTTPConnection

from waooaw_celery.cli.base.trusted_networks import is_within
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.access.principals_file import Principals, hash_key
from waooaw_celery.errors import NotPermitted

#: The header with an API key; the other form is ``Authorization: Bearer <key>``.
API_KEY_HEADER = "X-API-Key"


class Authentication(ABC):
    """Finds out who makes a request.

    Attributes:
        may_block: whether ``authenticate`` may wait for something; then it is called in a thread.
    """

    may_block: bool = True

    @abstractmethod
    def authenticate(self, connection: HTTPConnection) -> Principal | None:
        """Return who makes a request; None: it shows nothing that this way of authentication knows.

        Raises:
            NotPermitted: what it shows is wrong, or nobody is known by it.
            StoreUnavailable: it cannot be told now.
        """

    def schemes(self) -> dict[str, dict[str, str]]:
        """Return the security schemes as OpenAPI has them, by name."""
        return {}


class NoAuthentication(Authentication):
    """Everybody who reaches the edge is one principal. Only for an edge on loopback.

    Args:
        principal: the principal.
    """

    may_block = False

    def __init__(self, principal: Principal) -> None:
        self._principal = principal

    def authenticate(self, connection: HTTPConnection) -> Principal | None:
        """Return the principal."""
        return self._principal


class ApiKeys(Authentication):
    """API keys, in the header ``X-API-Key`` or as bearer token.

    Args:
        principals: the known principals.
    """

    may_block = False

    def __init__(self, principals: Principals) -> None:
        self._by_key = principals.by_key

    def authenticate(self, connection: HTTPConnection) -> Principal | None:
        """Return the principal whose key the request has."""
        keys = connection.headers.getlist(API_KEY_HEADER)
        if len(keys) > 1:
            raise NotPermitted(f"the request has more than one {API_KEY_HEADER}")
        token = bearer_token(connection)
        if keys and token is not None and token != keys[0]:
            raise NotPermitted(f"the request has both {API_KEY_HEADER} and a bearer token: send one of them")
        key = keys[0] if keys else token
        if key is None or (not keys and key.count(".") == 2):  # that is a signed token (RFC 7515)
            return None
        found = self._by_key.get(hash_key(key))
        # The dictionary compares hashes of a random key: its timing tells nothing that helps to guess one.
        if found is None:
            raise NotPermitted("this API key is not known")
        return found

    def schemes(self) -> dict[str, dict[str, str]]:
        """Return the security scheme."""
        return {"apiKey": {"type": "apiKey", "in": "header", "name": API_KEY_HEADER}}


class TrustedProxy(Authentication):
    """The name that a trusted proxy writes into a header, once it has authenticated the client by mutual TLS.

    Args:
        principals: the known principals.
        networks: the networks of the proxies. The header counts from nowhere else.
        user_header: the header with the name.
    """

    may_block = False

    def __init__(
        self, principals: Principals, networks: Sequence[IPv4Network | IPv6Network], user_header: str
    ) -> None:
        self._by_user, self._networks, self._header = principals.by_proxy_user, tuple(networks), user_header

    def authenticate(self, connection: HTTPConnection) -> Principal | None:
        """Return the principal whom the proxy names."""
        names = connection.headers.getlist(self._header)
        if not names:
            return None
        client = connection.client
        if not is_within(client.host if client is not None else None, self._networks):
            raise NotPermitted(f"only the trusted proxy may send the header {self._header}")
        if len(names) > 1:  # one of them may be the client's own
            raise NotPermitted(f"the proxy sent more than one {self._header}")
        found = self._by_user.get(names[0].strip())
        if found is None:
            raise NotPermitted("the file of principals has nobody with this name of a proxy user")
        return found

    def schemes(self) -> dict[str, dict[str, str]]:
        """Return the security scheme."""
        return {"mutualTLS": {"type": "mutualTLS"}}


class FirstOf(Authentication):
    """Several ways of authentication: the first that knows what a request shows decides.

    Args:
        ways: the ways, in order.
    """

    def __init__(self, ways: Sequence[Authentication]) -> None:
        self._ways = tuple(ways)
        self.may_block = any(way.may_block for way in self._ways)

    def authenticate(self, connection: HTTPConnection) -> Principal | None:
        """Return the principal that the first way finds."""
        for way in self._ways:
            if (found := way.authenticate(connection)) is not None:
                return found
        return None

    def schemes(self) -> dict[str, dict[str, str]]:
        """Return the security schemes of all ways."""
        return {name: scheme for way in self._ways for name, scheme in way.schemes().items()}


def bearer_token(connection: HTTPConnection) -> str | None:
    """Return the bearer token of a request (RFC 6750), or None.

    Raises:
        NotPermitted: the request has several credentials.
    """
    given = connection.headers.getlist("authorization")
    if len(given) > 1:
        raise NotPermitted("the request has more than one Authorization")
    scheme, _, token = (given[0] if given else "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
