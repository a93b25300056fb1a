"""Bearer tokens of a real provider over HTTP: right ones, forged ones, and a provider that is away."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey
from openid_provider import Provider, openid_provider
from starlette.requests import HTTPConnection

from waooaw_celery.edges.access import provider_keys
from waooaw_celery.edges.access.authentication import ApiKeys, FirstOf
from waooaw_celery.edges.access.bearer_tokens import BearerTokens
from waooaw_celery.edges.access.principals_file import new_key, parse_principals
from waooaw_celery.errors import ConfigurationError, NotPermitted, StoreUnavailable

LOOPBACK = [ip_network("127.0.0.0/8")]
KEY = new_key()


@pytest.fixture
def provider() -> Iterator[Provider]:
    with openid_provider() as server:
        yield server


def tokens_of(provider: Provider, issuer: str | None = None) -> BearerTokens:
    """Return the authentication for a provider."""
    principals = parse_principals(
        {"portal": {"from_agent": "portal", "subjects": [f"{provider.issuer} 1"], "keys": [KEY[1]]}}
    )
    return BearerTokens(principals, [issuer or provider.issuer], "edge", LOOPBACK)


def shown(token: str) -> HTTPConnection:
    """Return a request with a bearer token."""
    return HTTPConnection({"type": "http", "headers": [(b"authorization", f"Bearer {token}".encode())]})


def token_of(provider: Provider, key: Any = None, header: dict[str, Any] | None = None, **changes: Any) -> str:
    """Return a token of a provider."""
    now = int(time.time())
    claims = {"iss": provider.issuer, "sub": "1", "aud": "edge", "iat": now, "exp": now + 60, **changes}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode({"alg": "RS256", "kid": "1", **(header or {})}, claims, key or provider.key)


def test_a_token_names_its_principal(provider: Provider) -> None:
    """By its issuer and its subject; its audience may be one of several."""
    tokens = tokens_of(provider)
    for audience in ("edge", ["other", "edge"]):
        found = tokens.authenticate(shown(token_of(provider, aud=audience)))
        assert found is not None
        assert found.name == "portal"
    assert tokens.authenticate(HTTPConnection({"type": "http", "headers": []})) is None
    [scheme] = tokens.schemes().values()
    assert scheme["openIdConnectUrl"] == f"{provider.issuer}/.well-known/openid-configuration"


def encoded(value: Any) -> str:
    """Return a part of a token."""
    return text_of(json.dumps(value).encode())


def text_of(data: bytes) -> str:
    """Return base64 as a token has it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another"},
        {"aud": ["a", "b"]},
        {"aud": None},
        {"aud": {"edge": 1}},
        {"iss": "https://evil.example"},
        {"iss": ["x"]},
        {"iss": None},
        {"exp": 1},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": float("inf")},
        {"nbf": 4_000_000_000},
        {"iat": 4_000_000_000},
        {"sub": "2"},
        {"sub": None},
        {"sub": ["1"]},
    ],
    ids=range(16),
)
def test_a_wrong_claim_is_refused(provider: Provider, changes: dict[str, Any]) -> None:
    """For another service, of another issuer, expired, not yet valid, or of nobody who is known."""
    with pytest.raises(NotPermitted) as refused:
        tokens_of(provider).authenticate(shown(token_of(provider, **changes)))
    assert "eyJ" not in str(refused.value)


def test_a_forged_signature_is_refused(provider: Provider) -> None:
    """Another key, no signature, the public key as a secret, a key within the token, a part that is missing."""
    tokens = tokens_of(provider)
    another = RSAKey.generate_key(2048)
    claims = {"iss": provider.issuer, "sub": "1", "aud": "edge", "exp": int(time.time()) + 60}
    whole = token_of(provider)
    secret = provider.public.as_pem(private=False)  # joserfc refuses to sign with it
    content = f"{encoded({'alg': 'HS256', 'kid': '1'})}.{encoded(claims)}"
    symmetric = f"{content}.{text_of(hmac.digest(secret, content.encode(), 'sha256'))}"
    forged = [
        token_of(provider, another),
        f"{encoded({'alg': 'none', 'kid': '1'})}.{encoded(claims)}.",
        symmetric,
        token_of(provider, another, {"jwk": another.as_dict(private=False)}),
        token_of(provider, ECKey.generate_key("P-256"), {"alg": "ES256"}),
        whole[:-8] + "AAAAAAAA",
        whole + "A",
        "a.b.c",
        "..",
        f"{whole.partition('.')[0]}..{whole.rpartition('.')[2]}",
        "x" * 20_000 + ".y.z",
    ]
    for token in forged:
        with pytest.raises(NotPermitted):
            tokens.authenticate(shown(token))
    assert tokens.authenticate(shown(whole)) is not None


def test_a_new_key_is_found_and_unknown_ones_are_not_asked_for_often(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys are read once more for an unknown one; forged ids do not make this computer ask each time."""
    tokens = tokens_of(provider)
    assert tokens.authenticate(shown(token_of(provider))) is not None
    old = token_of(provider)
    provider.public = provider.key = RSAKey.generate_key(2048, {"kid": "2", "use": "sig"})
    rotated = token_of(provider, header={"kid": "2"})
    with pytest.raises(NotPermitted, match="does not publish"):
        tokens.authenticate(shown(rotated))  # it has just asked
    monkeypatch.setattr(provider_keys, "MIN_PAUSE", 0.0)
    assert tokens.authenticate(shown(rotated)) is not None
    monkeypatch.setattr(provider_keys, "MIN_PAUSE", 60.0)
    with pytest.raises(NotPermitted, match="does not publish"):
        tokens.authenticate(shown(old))


def test_a_provider_that_is_away_is_no_wrong_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys are used for a time. Without them, the edge is unavailable."""
    with openid_provider() as provider:
        known, unknown = tokens_of(provider), tokens_of(provider)
        token = token_of(provider)
        assert known.authenticate(shown(token)) is not None
    monkeypatch.setattr(provider_keys, "MAX_AGE", 0.0)
    assert known.authenticate(shown(token)) is not None
    monkeypatch.setattr(provider_keys, "MAX_STALE", 0.0)
    for tokens in (known, unknown):
        with pytest.raises(StoreUnavailable, match="does not answer"):
            tokens.authenticate(shown(token))


def test_a_provider_that_lies_or_is_unreachable_gives_no_keys(provider: Provider) -> None:
    """Its discovery document names another issuer, or its address is of a network that is not allowed."""
    principals = parse_principals({"portal": {"from_agent": "portal", "subjects": ["x 1"]}})
    slash = f"{provider.issuer}/"
    lying = BearerTokens(principals, [slash], "edge", LOOPBACK)
    with pytest.raises(StoreUnavailable):
        lying.authenticate(shown(token_of(provider, iss=slash)))
    outside = BearerTokens(principals, [provider.issuer], "edge")
    with pytest.raises(StoreUnavailable):
        outside.authenticate(shown(token_of(provider)))
    for issuer in (
        "http://login.example",
        "login.example",
        "https://user@login.example",
        "file:///etc",
        "http://[",
    ):
        with pytest.raises(ConfigurationError, match="must be a URL of https"):
            BearerTokens(principals, [issuer], "edge")


def test_keys_and_tokens_are_used_together(provider: Provider) -> None:
    """Each request shows one of them; both at once are refused."""
    principals = parse_principals(
        {"portal": {"from_agent": "portal", "subjects": [f"{provider.issuer} 1"], "keys": [KEY[1]]}}
    )
    both = FirstOf([ApiKeys(principals), tokens_of(provider)])
    for credential in (KEY[0], token_of(provider)):
        found = both.authenticate(shown(credential))
        assert found is not None
        assert found.name == "portal"
    with pytest.raises(NotPermitted):
        both.authenticate(shown("wrong"))
    headers = [(b"authorization", f"Bearer {token_of(provider)}".encode()), (b"x-api-key", KEY[0].encode())]
    with pytest.raises(NotPermitted, match="send one of them"):
        both.authenticate(HTTPConnection({"type": "http", "headers": headers}))
