"""The HTTP client of an edge: for cards, webhooks and push notifications, whose addresses others choose.

It connects to no address of an inner network unless that is allowed, neither at first nor after a redirect: each
name is resolved once, all its addresses are checked, and the connection goes to the address that was checked, so
that a name cannot change its address in between. See OWASP's Server-Side Request Forgery Prevention Cheat Sheet.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx2 as httpx

from waooaw_celery.edges.protection.networks import Network
from waooaw_celery.errors import NotPermitted


class PublicTransport(httpx.AsyncHTTPTransport):
    """Connects only to public addresses, and to those that are allowed.

    Args:
        allowed: networks that may be reached although they are not public.
        verify: whether certificates are checked, or an SSL context.
    """

    def __init__(self, allowed: Sequence[Network] = (), *, verify: object = True) -> None:
        super().__init__(verify=verify, trust_env=False)  # type: ignore[arg-type]  # a context, or a flag
        self._allowed = tuple(allowed)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to the checked address of its host.

        Raises:
            NotPermitted: the host has an address that is not allowed, or the URL is not of HTTP.
        """
        if request.url.scheme not in ("http", "https"):
            raise NotPermitted(f"only http and https addresses are reached, not {request.url.scheme}")
        host = request.url.host
        address = await checked_address(host, request.url.port or _PORTS[request.url.scheme], self._allowed)
        request.extensions = {**request.extensions, "sni_hostname": host}
        request.url = request.url.copy_with(host=address)  # the header Host is written already
        return await super().handle_async_request(request)


_PORTS = {"http": 80, "https": 443}
#: Seconds within which a name must be resolved.
_RESOLVE_SECONDS = 10.0


async def checked_address(host: str, port: int, allowed: Collection[Network] = ()) -> str:
    """Return an address of a host, once all its addresses were checked.

    Args:
        host: a name or an address.
        port: the port.
        allowed: networks that may be reached although they are not public.

    Raises:
        NotPermitted: one of them is not public and not allowed, or the name has no address.
    """
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NotPermitted(f"the host {host!r:.200} has no address: {error}") from error
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    for text in addresses:
        address = ip_address(text.partition("%")[0])
        if not is_public(address) and not any(address in network for network in allowed):
            raise NotPermitted(
                f"{host} has {address}, an address of an inner network: if it may be reached, allow it with "
                "allowed_networks in the declaration, or with --allow-network of waooaw serve"
            )
    return addresses[0]


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is reached over the public internet.

    An IPv6 address that contains an IPv4 address (mapped, compatible, 6to4, NAT64) is as public as that.
    """
    if isinstance(address, IPv6Address):
        if address.is_site_local or address in _LOCAL_NAT64:
            return False
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and any(address in network for network in _WITH_IPV4):
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and address not in _SPECIAL


#: Networks whose last 32 bits are an IPv4 address: IPv4-compatible, IPv4-translated (RFC 2765) and NAT64.
_WITH_IPV4 = tuple(IPv6Network(each) for each in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96"))
#: NAT64 of a network of its own (RFC 8215): where its addresses lead, only that network knows.
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
#: IETF Protocol Assignments, of which some versions of Python take a part as global.
_SPECIAL = IPv4Network("192.0.0.0/24")


def public_client(
    allowed: Sequence[Network] = (), *, timeout: float = 10.0, headers: dict[str, str] | None = None
) -> httpx.AsyncClient:
    """Return a client that reaches public addresses only, and follows no redirect.

    Args:
        allowed: networks that may be reached although they are not public.
        timeout: seconds for each step: to connect, to send, to receive the next part.
        headers: headers of each request.
    """
    return httpx.AsyncClient(
        transport=PublicTransport(allowed),
        timeout=timeout,
        follow_redirects=False,
        trust_env=False,
        headers=headers,
    )
