"""Chooses how people are authenticated, and refuses what would be unsafe."""

from __future__ import annotations

import getpass
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from waooaw_celery.console.access.authentication import (
    Authentication,
    BasicAuthentication,
    NoAuthentication,
    ProxyAuthentication,
)
from waooaw_celery.console.access.oidc import OidcAuthentication
from waooaw_celery.console.access.passwords import read_users
from waooaw_celery.console.access.roles import Role
from waooaw_celery.errors import ConfigurationError

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenIdProvider:
    """Where people log in.

    Attributes:
        issuer: URL of the provider.
        client_id: the id of the console at the provider.
        client_secret: its secret.
        name_claim: the claim with a person's name.
        groups_claim: the claim with a person's groups.
    """

    issuer: str
    client_id: str
    client_secret: str
    name_claim: str = "preferred_username"
    groups_claim: str = "groups"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedProxies:
    """Proxies that have authenticated people already.

    Attributes:
        networks: their addresses or networks, such as ``10.0.0.7/32``.
        user_header: the header with the person's name.
        groups_header: the header with the groups, separated by commas; None: there is none.
    """

    networks: Collection[str]
    user_header: str = "X-Forwarded-User"
    groups_header: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessOptions:
    """Who reaches the console, and how.

    Attributes:
        host: the address that it listens on.
        public_url: its address as browsers see it; None: it has no other than the host.
        allowed_hosts: more names by which browsers may reach it.
        has_tls: whether it has a certificate of its own.
        users: the file with the users of basic authentication.
        proxies: proxies that authenticate people.
        provider: a provider of OpenID Connect.
        grants: who has which role, by name or group.
    """

    host: str
    public_url: str | None = None
    allowed_hosts: Collection[str] = ()
    has_tls: bool = False
    users: Path | None = None
    proxies: TrustedProxies | None = None
    provider: OpenIdProvider | None = None
    grants: Mapping[Role, Collection[str]]

    @property
    def is_secure(self) -> bool:
        """Whether browsers reach the console by HTTPS."""
        return self.has_tls or (self.public_url is not None and self.public_url.startswith("https://"))

    @property
    def hosts(self) -> Collection[str]:
        """The names by which browsers reach the console."""
        own = (*_LOOPBACK_NAMES, self.host) if is_loopback(self.host) else (self.host,)
        public = urlsplit(self.public_url).hostname if self.public_url is not None else None
        return {*own, *self.allowed_hosts, *([public] if public is not None else [])}


def authentication_of(options: AccessOptions) -> Authentication:
    """Return how people are authenticated.

    Raises:
        ConfigurationError: the options contradict each other, or would let strangers in.
    """
    chosen = [each for each in (options.users, options.proxies, options.provider) if each is not None]
    if len(chosen) > 1:
        raise ConfigurationError(
            "choose one way to authenticate: a file of users, a trusted proxy, or OpenID Connect"
        )
    if options.public_url is not None and urlsplit(options.public_url).scheme not in ("http", "https"):
        raise ConfigurationError(
            f"--public-url {options.public_url!r} is no URL, such as https://console.example.com"
        )
    if not chosen:
        return _without_authentication(options)
    if options.users is not None:
        if not is_loopback(options.host) and not options.is_secure:
            raise ConfigurationError(
                "passwords would travel in clear: give --tls-certificate and --tls-key, or the https address of "
                "the proxy in front of the console as --public-url"
            )
        return BasicAuthentication(read_users(options.users))
    if not any(options.grants.values()):
        raise ConfigurationError(
            "nobody has a role: say with --viewer, --operator and --officer who has which, by name or group"
        )
    if options.proxies is not None:
        return _proxies(options.proxies, options.grants)
    assert options.provider is not None  # noqa: S101 - one of the three was chosen
    return _provider(options.provider, options)


def is_loopback(host: str) -> bool:
    """Whether an address is only reached from this computer."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _without_authentication(options: AccessOptions) -> Authentication:
    if not is_loopback(options.host) or options.public_url is not None:
        raise ConfigurationError(
            f"the console would be open to everybody who reaches {options.public_url or options.host}: give "
            "--users, --trusted-proxy or --oidc-issuer, or listen on 127.0.0.1"
        )
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # in a container, the user may have no name
        name = "local"
    return NoAuthentication(name)


def _proxies(proxies: TrustedProxies, grants: Mapping[Role, Collection[str]]) -> Authentication:
    try:
        networks = [ip_network(each) for each in proxies.networks]
    except ValueError as error:
        raise ConfigurationError(f"--trusted-proxy is no address or network: {error}") from error
    return ProxyAuthentication(networks, proxies.user_header, proxies.groups_header, grants)


def _provider(provider: OpenIdProvider, options: AccessOptions) -> Authentication:
    if options.public_url is None:
        raise ConfigurationError("OpenID Connect needs --public-url, to which the provider sends people back")
    public_host = urlsplit(options.public_url).hostname or ""
    if not options.is_secure and not is_loopback(public_host):
        raise ConfigurationError(
            "OpenID Connect needs HTTPS: give the https address of the console as --public-url"
        )
    if not provider.client_secret:
        raise ConfigurationError("the secret of the OpenID client is missing: set WAOOAW_CONSOLE_OIDC_SECRET")
    return OidcAuthentication(
        issuer=provider.issuer,
        client_id=provider.client_id,
        client_secret=provider.client_secret,
        grants=options.grants,
        name_claim=provider.name_claim,
        groups_claim=provider.groups_claim,
        public_url=options.public_url,
    )
