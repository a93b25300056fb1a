"""The HTTP client with which outside agents are called: only public addresses, no redirect, bounded answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network

import httpx

from waooaw_celery.edges.protection.outgoing import checked_address
from waooaw_celery.errors import InvalidMessage, NotPermitted

_PORTS = {"http": 80, "https": 443}


class BoundedPublicTransport(httpx.AsyncHTTPTransport):
    """Connects only to public addresses, and to those that are allowed, and bounds what comes back.

    It is ``PublicTransport`` for httpx, which a2a-sdk uses. An answer that is compressed is refused: a small one
    may become very large.

    Args:
        allowed: networks that may be reached although they are not public.
        max_bytes: largest answer; of a stream, all of it.
    """

    def __init__(self, allowed: Sequence[IPv4Network | IPv6Network], max_bytes: int) -> None:
        super().__init__(trust_env=False)
        self._allowed, self._max_bytes = tuple(allowed), max_bytes

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to the checked address of its host.

        Raises:
            NotPermitted: the host has an address that is not allowed, or the URL is not of HTTP.
            InvalidMessage: the answer is compressed.
        """
        url = request.url
        if url.scheme not in _PORTS:
            raise NotPermitted(f"only http and https addresses are reached, not {url.scheme:.80}")
        address = await checked_address(url.host, url.port or _PORTS[url.scheme], self._allowed)
        request.extensions = {**request.extensions, "sni_hostname": url.host}
        request.url = url.copy_with(host=address)  # the header Host is written already
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise InvalidMessage(f"{url.host} sent a compressed answer, and was asked for a plain one")
        response.stream = _Bounded(response.stream, url.host, self._max_bytes)
        return response


class _Bounded(httpx.AsyncByteStream):
    """An answer of which only so many bytes are read."""

    def __init__(self, stream: httpx.AsyncByteStream | httpx.SyncByteStream, host: str, max_bytes: int) -> None:
        self._stream, self._host, self._max_bytes = stream, host, max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._max_bytes
        async for part in self._stream:  # type: ignore[union-attr]  # an asynchronous transport made it
            left -= len(part)
            if left < 0:
                raise InvalidMessage(f"the answer of {self._host} has more than {self._max_bytes} bytes")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()  # type: ignore[union-attr]


def outgoing_client(
    allowed: Sequence[IPv4Network | IPv6Network], max_bytes: int, timeout: float, headers: Mapping[str, str]
) -> httpx.AsyncClient:
    """Return a client.

    Args:
        allowed: networks that may be reached although they are not public.
        max_bytes: largest answer.
        timeout: seconds for each step: to connect, to send, to receive the next part.
        headers: headers of each request, such as one with an API key.
    """
    return httpx.AsyncClient(
        transport=BoundedPublicTransport(allowed, max_bytes),
        timeout=timeout,
        follow_redirects=False,
        trust_env=False,
        headers={**headers, "Accept-Encoding": "identity"},
    )
