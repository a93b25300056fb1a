"""Whether a client's address belongs to networks that are trusted, such as those of a proxy."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address


def is_within(host: str | None, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    """Return whether a host is in one of some networks.

    Args:
        host: its address as a server names it; None or another text: it is in none.
        networks: the networks.

    Example:
        >>> from ipaddress import ip_network
        >>> is_within("::ffff:10.0.0.7", [ip_network("10.0.0.0/8")])
        True
    """
    try:
        address = ip_address(host or "")
    except ValueError:
        return False
    if isinstance(address, IPv6Address):  # a socket of both versions shows an IPv4 client like this
        address = address.ipv4_mapped or address
    return any(address in network for network in networks)
