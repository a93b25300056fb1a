"""The public keys of an OpenID provider: found by its discovery document, kept for a time, and read again."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OctKey

from waooaw_celery.edges.protection.outgoing import public_client
from waooaw_celery.errors import ConfigurationError, NotPermitted, StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Seconds after which the keys are read again, and for which they are used at most if the provider is away.
MAX_AGE, MAX_STALE = 3600.0, 4 * 3600.0
#: Seconds between two reads because of an unknown key, so that forged tokens cannot make this computer ask often.
MIN_PAUSE = 10.0
#: Seconds in which the provider must answer, and the largest of its documents.
FETCH_SECONDS, MAX_BYTES = 10.0, 512 * 1024


class ProviderKeys:
    """The keys of one provider. It may be used by several threads.

    Args:
        issuer: the URL of the provider, as its tokens name it.
        allowed_networks: inner networks in which it may be.

    Raises:
        ConfigurationError: the issuer is no URL of https, or of http on this computer.
    """

    def __init__(self, issuer: str, allowed_networks: Sequence[IPv4Network | IPv6Network] = ()) -> None:
        if not _is_safe(issuer):
            raise ConfigurationError(f"the issuer {issuer!r:.200} must be a URL of https")
        self.issuer, self._allowed = issuer, tuple(allowed_networks)
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._kids: frozenset[str | None] = frozenset()
        self._read_at = self._tried_at = -MAX_STALE

    @property
    def discovery_url(self) -> str:
        """The address of its discovery document."""
        return self.issuer.rstrip("/") + "/.well-known/openid-configuration"

    def keys_for(self, kid: object) -> KeySet:
        """Return the keys, which have that of an id.

        Args:
            kid: the id of a key, as a token names it; None: it names none.

        Raises:
            NotPermitted: the provider has no such key.
            StoreUnavailable: it does not answer, and its keys are not known or too old.
        """
        keys = self._keys
        if keys is not None and time.monotonic() - self._read_at < MAX_AGE and self._has(kid):
            return keys
        if not self._lock.acquire(timeout=2 * FETCH_SECONDS):
            raise StoreUnavailable("the OpenID provider does not answer: try again later")
        try:
            return self._refreshed(kid)
        finally:
            self._lock.release()

    def _refreshed(self, kid: object) -> KeySet:
        now = time.monotonic()
        is_fresh = self._keys is not None and now - self._read_at < MAX_AGE
        if not (is_fresh and self._has(kid)) and now - self._tried_at >= MIN_PAUSE:
            self._tried_at = now
            try:
                self._read()
            except (httpx.HTTPError, OSError, ValueError, TypeError, KeyError, JoseError, NotPermitted) as error:
                logger.warning(
                    "the keys of the OpenID provider %s cannot be read: %r",
                    self.issuer,
                    error,
                    extra={"action": "edge_provider_unavailable"},
                )
        if self._keys is None or now - self._read_at > MAX_STALE:
            raise StoreUnavailable("the OpenID provider does not answer: try again later")
        if not self._has(kid):
            raise NotPermitted("the token is signed with a key that its provider does not publish")
        return self._keys

    def _has(self, kid: object) -> bool:
        return kid is None or kid in self._kids

    def _read(self) -> None:
        """Read the keys, in a loop of this thread."""
        published = asyncio.run(self._fetch())
        keys = KeySet([key for key in KeySet.import_key_set(published).keys if not isinstance(key, OctKey)])
        self._keys, self._kids = keys, frozenset(key.kid for key in keys.keys)
        self._read_at = time.monotonic()

    async def _fetch(self) -> Any:
        async with asyncio.timeout(FETCH_SECONDS), public_client(self._allowed, timeout=FETCH_SECONDS) as client:
            document = await _json_at(client, self.discovery_url)
            if document.get("issuer") != self.issuer:
                raise ValueError("its discovery document is of another issuer")
            url = document.get("jwks_uri")
            if not isinstance(url, str) or not _is_safe(url):
                raise ValueError("its jwks_uri is no URL of https")
            return await _json_at(client, url)


async def _json_at(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """Return the JSON object at an address, within the bound of its size."""
    body = b""
    async with client.stream("GET", url, headers={"Accept": "application/json"}) as answer:
        if answer.status_code != 200:
            raise ValueError(f"it answered {answer.status_code}")
        async for part in answer.aiter_bytes():
            body += part
            if len(body) > MAX_BYTES:
                raise ValueError(f"its answer has more than {MAX_BYTES} bytes")
    found = json.loads(body)
    if not isinstance(found, dict):
        raise TypeError("its answer is no JSON object")
    return found


def _is_safe(url: str) -> bool:
    """Whether a URL is of https, or of http on this computer."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if not host or parts.username is not None:
        return False
    if parts.scheme == "https":
        return True
    if parts.scheme != "http":
        return False
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
