"""Bearer tokens of OpenID providers: signed JSON Web Tokens (RFC 9068), checked with the provider's keys."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from starlette.requests import HTTPConnection

from waooaw_celery.edges.access.authentication import Authentication, bearer_token
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.access.principals_file import Principals
from waooaw_celery.edges.access.provider_keys import ProviderKeys
from waooaw_celery.errors import ConfigurationError, NotPermitted

#: The signatures that are accepted: only those with a public key, so that nobody can sign with what is public.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA")
#: Seconds by which the clocks of the provider and of this computer may differ.
LEEWAY = 30
#: Longest token, in characters.
MAX_TOKEN = 16_384


class BearerTokens(Authentication):
    """Bearer tokens of OpenID providers. The principal is that whose ``subjects`` have ``"issuer sub"``.

    Args:
        principals: the known principals.
        issuers: URLs of the providers, as the tokens name them. Tokens of others are refused.
        audience: the audience that a token must have, so that none for another service counts.
        allowed_networks: inner networks in which a provider may be.

    Raises:
        ConfigurationError: an issuer is no URL of https, or of http on this computer.
    """

    def __init__(
        self,
        principals: Principals,
        issuers: Collection[str],
        audience: str,
        allowed_networks: Sequence[IPv4Network | IPv6Network] = (),
    ) -> None:
        if not issuers or not audience:
            raise ConfigurationError("bearer tokens need an issuer and an audience")
        self._by_subject, self._audience = principals.by_subject, audience
        self._providers = {issuer: ProviderKeys(issuer, allowed_networks) for issuer in issuers}

    def authenticate(self, connection: HTTPConnection) -> Principal | None:
        """Return the principal of a token.

        Raises:
            NotPermitted: the token is not valid here.
            StoreUnavailable: its provider does not answer, and its keys are not known.
        """
        token = bearer_token(connection)
        if token is None or token.count(".") != 2:
            return None
        claims = self._claims(token)
        subject = f"{claims['iss']} {claims['sub']}"
        found = self._by_subject.get(subject)
        if found is None:
            raise NotPermitted("the file of principals has nobody with the issuer and the subject of this token")
        return found

    def schemes(self) -> dict[str, dict[str, str]]:
        """Return the security schemes: one for each provider."""
        names = [f"openIdConnect{number}" if number > 1 else "openIdConnect" for number in self._numbers()]
        return {
            name: {"type": "openIdConnect", "openIdConnectUrl": provider.discovery_url}
            for name, provider in zip(names, self._providers.values(), strict=True)
        }

    def _numbers(self) -> range:
        return range(1, len(self._providers) + 1)

    def _claims(self, token: str) -> dict[str, Any]:
        """Return the claims of a token, once it was checked."""
        header, unchecked = _parts(token)
        provider = self._providers.get(unchecked.get("iss", "")) if isinstance(unchecked.get("iss"), str) else None
        if provider is None:
            raise NotPermitted("the token is of an issuer that this edge does not know")
        if header.get("alg") not in ALGORITHMS:
            raise NotPermitted("the token's signature is of a kind that this edge does not accept")
        keys = provider.keys_for(header.get("kid"))
        rules = jwt.JWTClaimsRegistry(
            leeway=LEEWAY,
            iss={"essential": True, "value": provider.issuer},
            sub={"essential": True},
            aud={"essential": True, "value": self._audience},
            exp={"essential": True},
        )
        try:
            claims = jwt.decode(token, keys, algorithms=ALGORITHMS).claims
            rules.validate(claims)
        except (JoseError, ValueError, TypeError) as error:
            raise NotPermitted(f"the token is not valid: {_reason(error)}") from error
        return claims


def _parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and the claims of a token that is not yet checked."""
    if len(token) > MAX_TOKEN:
        raise NotPermitted(f"the token has more than {MAX_TOKEN} characters")
    found = []
    for part in token.split(".")[:2]:
        try:
            value = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        except (binascii.Error, ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise NotPermitted("the bearer token is neither an API key nor a JSON Web Token")
        found.append(value)
    return found[0], found[1]


def _reason(error: Exception) -> str:
    """Return why a token is refused, without anything of the token."""
    claim = getattr(error, "claim", None)
    name = type(error).__name__.removesuffix("Error")
    return f"{name} of {claim}" if isinstance(claim, str) else name
