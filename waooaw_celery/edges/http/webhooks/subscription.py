"""Webhooks: a subscription whose handler is a URL. Each event is posted to it as a signed CloudEvent."""

from __future__ import annotations

import asyncio
import json
import math
import os
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2 as httpx
from celery import Task

from waooaw_celery.agents.agent import Agent
from waooaw_celery.agents.events.cloudevents import to_cloudevent
from waooaw_celery.edges.http.webhooks.signature import secret_bytes, signed_headers
from waooaw_celery.edges.protection.networks import Network, networks
from waooaw_celery.edges.protection.outgoing import PublicTransport
from waooaw_celery.errors import ConfigurationError, InvalidMessage, NotPermitted
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.validation import JSON
from waooaw_celery.worker.retries.retry_policy import RetryPolicy

#: What a retry cannot change.
_NEVER = (NotPermitted, InvalidMessage, ConfigurationError)
#: Answers after which it is tried again, beside those of 500 and more.
_AGAIN = frozenset({408, 425, 429})
#: The longest pause that a receiver may ask for, in seconds.
MAX_RETRY_AFTER = 3600.0
#: What stays as it is in a header of a CloudEvent.
_SAFE = "".join(char for char in map(chr, range(0x21, 0x7F)) if char not in '"%')


def webhook(
    agent: Agent,
    *patterns: str,
    url: str,
    secret: str | Sequence[str] | None = None,
    secret_variable: str | None = None,
    name: str = "webhook",
    binary: bool = False,
    timeout: float = 15.0,
    retries: RetryPolicy | int = 5,
    allowed_networks: Sequence[str | Network] = (),
    **options: Any,
) -> Task[Any, Any]:
    """Subscribe a URL: each event that matches is posted to it, as a CloudEvent with a signature.

    It is a subscription like any other: it waits in the agent's queue, is retried, and becomes a dead letter.
    An answer of 2xx is success. 408, 425, 429, and 500 and more are retried, after ``Retry-After`` if it is
    there. Any other answer, such as 410 or a redirect, fails at once.

    Args:
        agent: the agent whose workers post.
        patterns: patterns of topics, as for ``subscribe``.
        url: the URL, of http or https.
        secret: the secret that signs, ``whsec_`` and base64; several while one replaces another.
        secret_variable: the environment variable of the workers with the secret, or with several, separated by
            spaces.
        name: name of the subscription.
        binary: whether the attributes of the event are in headers, and its data is the body.
        timeout: seconds within which it must be answered.
        retries: how often it is tried again.
        allowed_networks: inner networks that the URL may lead to, such as ``10.0.0.0/8``.
        options: other options of ``subscribe``, such as ``where``.

    Raises:
        ConfigurationError: the URL or the secret is invalid, or there is no secret, or two. The rest as
            ``subscribe``.

    Example:
        >>> webhook(agent, "orders.*", url="https://shop.example/hooks", secret_variable="SHOP_SECRET")
    """
    target = _Target(
        _checked_url(url), _checked_secrets(secret, secret_variable), secret_variable, binary, timeout,
        networks(allowed_networks),
    )  # fmt: skip
    policy = RetryPolicy.of(retries)
    policy = replace(policy, never=(*policy.never, *_NEVER))

    async def deliver(task: Any, message: Message) -> None:
        try:
            await _post(target, message)
        except _RetryLaterError as error:
            if error.seconds is None or not policy.may_retry(task.request.retries + 1, error, 0.0):
                raise
            pause = max(error.seconds, policy.delay(task.request.retries))
            raise task.retry(exc=error, countdown=pause, max_retries=policy.attempts - 1) from error

    deliver.__doc__ = f"Post the event to {target.host}."
    subscribe = agent.subscribe(*patterns, name=name, bind=True, retries=policy, **options)
    return subscribe(deliver)


class _RetryLaterError(ConnectionError):
    """The receiver did not take the event, and may later.

    Attributes:
        seconds: after how many it asks to try again; None: it does not say.
    """

    def __init__(self, text: str, seconds: float | None = None) -> None:
        super().__init__(text)
        self.seconds = seconds

    def __reduce__(self) -> tuple[Any, ...]:
        return _RetryLaterError, (self.args[0], self.seconds)


@dataclass(frozen=True, slots=True)
class _Target:
    url: str
    secrets: tuple[str, ...] = field(repr=False)
    secret_variable: str | None
    binary: bool
    timeout: float
    allowed: tuple[Network, ...]

    @property
    def host(self) -> str:
        """What errors call it: the rest of a URL may be secret."""
        return urlsplit(self.url).hostname or ""

    def known_secrets(self) -> tuple[str, ...]:
        """Return the secrets.

        Raises:
            ConfigurationError: the variable is not set, or has no secret.
        """
        if self.secret_variable is None:
            return self.secrets
        found = tuple(os.environ.get(self.secret_variable, "").split())
        if not found:
            raise ConfigurationError(
                f"the webhook to {self.host} has no secret: set {self.secret_variable} in the environment of the "
                "workers"
            )
        return found


async def _post(target: _Target, message: Message) -> None:
    """Post an event.

    Raises:
        _RetryLaterError: the receiver may take it later.
        NotPermitted: it refuses it for good, or its address may not be reached.
    """
    headers, body = _request(target, message)
    try:
        async with (
            asyncio.timeout(target.timeout),
            _client(target) as client,
            client.stream("POST", target.url, content=body, headers=headers) as answer,
        ):
            # The answer is not read beyond its headers: it may have no end.
            status, later = answer.status_code, answer.headers.get("retry-after")
    except TimeoutError:
        raise _RetryLaterError(f"{target.host} did not answer within {target.timeout:g} s") from None
    except (httpx.HTTPError, OSError, ssl.SSLError) as error:
        raise _RetryLaterError(f"{target.host} cannot be reached: {type(error).__name__}") from error
    if 200 <= status < 300:
        return
    if status >= 500 or status in _AGAIN:
        raise _RetryLaterError(f"{target.host} answered {status}", _seconds(later))
    why = ", which is not followed: give its final address" if 300 <= status < 400 else ""
    raise NotPermitted(f"{target.host} refused the event with {status}{why}")


def _client(target: _Target) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=PublicTransport(target.allowed, verify=_tls()),
        timeout=target.timeout,
        follow_redirects=False,
        trust_env=False,
    )


@cache
def _tls() -> ssl.SSLContext:
    """Return the TLS context of this process. To read the certificates takes longer than to post."""
    return httpx.create_ssl_context(trust_env=False)


def _request(target: _Target, message: Message) -> tuple[dict[str, str], bytes]:
    event = to_cloudevent(message)
    if target.binary:
        body = _encoded(event.pop("data"))
        kind = str(event.pop("datacontenttype"))
        headers = {f"ce-{name}": quote(_text(value), safe=_SAFE) for name, value in event.items()}
    else:
        body, kind, headers = _encoded(event), "application/cloudevents+json; charset=utf-8", {}
    headers |= {"Content-Type": kind, "User-Agent": "waooaw-celery"}
    return headers | signed_headers(target.known_secrets(), message.message_id, body, int(time.time())), body


def _encoded(value: JSON) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _text(value: JSON) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _seconds(header: str | None) -> float | None:
    """Return the seconds of a ``Retry-After``, within the bound; None: there is none, or it is invalid."""
    if header is None:
        return None
    try:
        seconds = float(header) if header.isascii() and header.isdigit() and len(header) < 12 else _until(header)
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER) if math.isfinite(seconds) else None


def _until(header: str) -> float:
    at = parsedate_to_datetime(header)
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()


def _checked_url(url: object) -> str:
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        valid = parts is not None and parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        parts, valid = None, None
    if parts is None or not valid:
        raise ConfigurationError("the url of a webhook must be a whole URL of http or https")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            "the url of a webhook must not have a user or a password: its signature shows who"
        )
    return str(url)


def _checked_secrets(secret: str | Sequence[str] | None, variable: str | None) -> tuple[str, ...]:
    if (secret is None) == (variable is None):
        raise ConfigurationError("a webhook needs one of secret= and secret_variable=")
    found = (secret,) if isinstance(secret, str) else tuple(secret or ())
    for each in found:
        secret_bytes(each)
    if secret is not None and not found:
        raise ConfigurationError("a webhook needs a secret")
    return found
