"""The card of an outside agent: fetched when it is first needed, checked, and kept for a while."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any
from urllib.parse import urlsplit

import httpx
from a2a.client.card_resolver import parse_agent_card
from a2a.types import AgentCard
from a2a.utils.constants import AGENT_CARD_WELL_KNOWN_PATH, TransportProtocol
from google.protobuf.json_format import ParseError

from waooaw_celery.edges.a2a.remote.transport import outgoing_client
from waooaw_celery.errors import ConfigurationError, InvalidMessage, NotPermitted

#: The bindings by which an outside agent is called, and the largest card.
BINDINGS = (TransportProtocol.JSONRPC.value, TransportProtocol.HTTP_JSON.value)
MAX_CARD_BYTES = 1024 * 1024
#: Algorithms of signatures that count; all need the public key only.
ALGORITHMS = ("ES256", "ES384", "RS256", "PS256", "EdDSA")


@dataclass(frozen=True, slots=True, kw_only=True)
class CardSource:
    """Where a card comes from, and who must have signed it.

    Attributes:
        url: the address of the card, or of the agent: then it is below that, at the well-known path.
        headers: headers of each request, such as one with an API key.
        allowed: inner networks that may be reached.
        keys: public keys by their ids, as PEM. With keys, a card counts only if one of them has signed it.
        max_age: seconds for which a card is used without asking again.
        timeout: seconds within which the card must have arrived.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    allowed: Sequence[IPv4Network | IPv6Network] = ()
    keys: Mapping[str, str | bytes] = field(default_factory=dict)
    max_age: float = 300.0
    timeout: float = 10.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(
                f"the address of an A2A agent is one such as https://weather.example.com, not {self.url!r:.200}"
            )

    @property
    def card_url(self) -> str:
        """The address of the card."""
        return self.url if self.url.endswith(".json") else self.url.rstrip("/") + AGENT_CARD_WELL_KNOWN_PATH


class RemoteCard:
    """The card of an outside agent, kept for this process.

    Args:
        source: where it comes from.
    """

    def __init__(self, source: CardSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._kept: tuple[AgentCard, str, float] | None = None  # the card, its ETag, and when it was asked for

    async def get(self) -> AgentCard:
        """Return the card.

        Raises:
            InvalidMessage: what came is no card, or is too large, or names no binding that is spoken here.
            NotPermitted: it leads to an inner network, or has no valid signature.
            httpx.HTTPError: the server failed, or it did not arrive in time.
        """
        with self._lock:
            kept = self._kept
        if kept is not None and time.monotonic() - kept[2] < self._source.max_age:
            return kept[0]
        card, tag = await self._fetch(kept)
        with self._lock:
            self._kept = card, tag, time.monotonic()
        return card

    async def _fetch(self, kept: tuple[AgentCard, str, float] | None) -> tuple[AgentCard, str]:
        source = self._source
        headers = {"If-None-Match": kept[1]} if kept is not None and kept[1] else {}
        client = outgoing_client(source.allowed, MAX_CARD_BYTES, source.timeout, source.headers)
        try:
            async with asyncio.timeout(source.timeout), client:
                answer = await client.get(source.card_url, headers=headers)
        except TimeoutError as error:
            raise httpx.ReadTimeout(f"the card did not arrive within {source.timeout:g} s") from error
        if answer.status_code == httpx.codes.NOT_MODIFIED and kept is not None:
            return kept[0], kept[1]
        if answer.status_code != httpx.codes.OK:
            raise InvalidMessage(
                f"there is no agent card at {source.card_url}: the answer was {answer.status_code}"
            )
        try:
            card = parse_agent_card(answer.json())
        except (ParseError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidMessage(f"what is at {source.card_url} is no agent card: {error!s:.300}") from error
        self._check(card)
        return card, answer.headers.get("etag", "")

    def _check(self, card: AgentCard) -> None:
        usable = [each for each in card.supported_interfaces if each.protocol_binding in BINDINGS]
        if not usable:
            raise InvalidMessage(
                f"the card at {self._source.card_url} names no interface with {' or '.join(BINDINGS)}: there is "
                "no way to call this agent"
            )
        if self._source.keys:
            check_signature(card, self._source.keys)


def check_signature(card: AgentCard, keys: Mapping[str, str | bytes]) -> None:
    """Check that one of the keys has signed a card. No key is fetched: a card must not choose who vouches for it.

    Args:
        card: the card.
        keys: public keys by their ids, as PEM.

    Raises:
        NotPermitted: it has no signature, or no valid one.
    """
    from a2a.utils.signing import SignatureVerificationError, create_signature_verifier
    from jwt.exceptions import InvalidKeyError

    def key_of(key_id: str | None, _: str | None) -> Any:
        if key_id is None or key_id not in keys:
            raise InvalidKeyError(f"no key {key_id!r:.80} is configured")
        return keys[key_id]

    verify: Callable[[AgentCard], None] = create_signature_verifier(key_of, list(ALGORITHMS))
    try:
        verify(card)
    except SignatureVerificationError as error:
        raise NotPermitted(
            f"the card of {card.name!r:.80} is not signed with one of the configured keys: {error}"
        ) from error
