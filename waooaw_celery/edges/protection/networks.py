"""Inner networks that an edge or an agent may reach, as their declarations name them."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network

from waooaw_celery.errors import ConfigurationError

Network = IPv4Network | IPv6Network


def networks(allowed: Iterable[str | Network]) -> tuple[Network, ...]:
    """Return networks from their texts, such as ``10.0.0.0/8``, or as they are.

    Args:
        allowed: the networks.

    Raises:
        ConfigurationError: a text is no network, or one text stands in place of a list.
    """
    if isinstance(allowed, str):
        raise ConfigurationError(f'give networks in a list, such as ["{allowed}"], not a text')
    return tuple(network_of(each) for each in allowed)


def network_of(value: str | Network) -> Network:
    """Return one network from its text, or as it is.

    Args:
        value: the network, or an address.

    Raises:
        ConfigurationError: it is no network.
    """
    try:
        return ip_network(value)
    except ValueError as error:
        raise ConfigurationError(f"{value!r} is no address or network: {error}") from error
