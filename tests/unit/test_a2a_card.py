"""The card of an agent for clients of A2A, and the signature of an outside agent's card."""

from __future__ import annotations

from typing import Any

import pytest
from a2a.types import AgentCard
from a2a.utils.signing import create_agent_card_signer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from waooaw_celery.discovery.agent_info import AgentInfo, AgentStatus
from waooaw_celery.discovery.declaration import Capability
from waooaw_celery.discovery.health.state import Health
from waooaw_celery.edges.a2a.card import agent_card
from waooaw_celery.edges.a2a.remote.card import CardSource, check_signature
from waooaw_celery.edges.gateway.catalogue import Operation
from waooaw_celery.errors import ConfigurationError, NotPermitted


def info(**fields: Any) -> AgentInfo:
    given: dict[str, Any] = {
        "name": "weather",
        "status": AgentStatus.ONLINE,
        "health": Health.HEALTHY,
        "reasons": (),
        "capabilities": (Capability(name="forecast", version="2", method="forecast"), Capability(name="eu")),
        "tags": ("live",),
        "metadata": {},
        "weight": 1.0,
        "max_in_flight": None,
        "handlers": ("forecast",),
        "workers": (),
        "running": 0,
        "last_seen": None,
        "order": None,
    }
    return AgentInfo(**(given | fields))


def operation(method: str, description: str = "") -> Operation:
    return Operation(
        agent="weather",
        method=method,
        is_workflow=method == "plan",
        description=description,
        parameters={},
        result=None,
        part=None,
    )


def test_each_operation_is_a_skill() -> None:
    """With its description, and the tags and capabilities that belong to it."""
    card = agent_card(info(), [operation("forecast", "Tell it."), operation("plan")], "https://x.example/", {})
    assert [(each.id, each.description, list(each.tags)) for each in card.skills] == [
        ("forecast", "Tell it.", ["live", "forecast@2", "eu"]),
        ("plan", "The workflow plan.", ["live", "eu"]),
    ]
    assert card.supported_interfaces[0].url == "https://x.example/a2a/weather"
    assert card.version == "0"
    assert card.description == "The agent weather."
    assert list(card.default_input_modes) == ["text/plain", "application/json"]
    described = agent_card(info(metadata={"description": "Knows the sky."}, tags=(), capabilities=()), [], "x", {})
    assert described.description == "Knows the sky."


def test_the_card_says_how_to_authenticate() -> None:
    """Each scheme is enough; one that the protocol does not have is a mistake of the edge."""
    schemes = {
        "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
        "oidc": {
            "type": "openIdConnect",
            "openIdConnectUrl": "https://id.example/.well-known/openid-configuration",
        },
        "mutualTLS": {"type": "mutualTLS"},
    }
    card = agent_card(info(), [], "https://x.example", schemes)
    assert card.security_schemes["apiKey"].api_key_security_scheme.location == "header"
    assert card.security_schemes["bearer"].http_auth_security_scheme.scheme == "bearer"
    assert card.security_schemes["oidc"].HasField("open_id_connect_security_scheme")
    assert card.security_schemes["mutualTLS"].HasField("mtls_security_scheme")
    assert [list(each.schemes) for each in card.security_requirements] == [[name] for name in schemes]
    with pytest.raises(ConfigurationError, match="no security scheme 'magic'"):
        agent_card(info(), [], "x", {"x": {"type": "magic"}})


def test_a_signature_counts_only_by_a_configured_key() -> None:
    """Not by another key, not by an unknown id, not for another text, and not without a signature."""
    private, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    public = _public(private)
    signed = _signed(private)
    check_signature(signed, {"k": public})
    for card, keys in (
        (signed, {"k": _public(other)}),
        (signed, {"another": public}),
        (agent_card(info(), [], "https://x.example", {}), {"k": public}),
    ):
        with pytest.raises(NotPermitted, match="not signed with one of the configured keys"):
            check_signature(card, keys)
    signed.description = "Somebody else."
    with pytest.raises(NotPermitted, match="not signed"):
        check_signature(signed, {"k": public})


def test_the_address_of_a_card() -> None:
    """That of the card itself, or of the agent; anything else is refused at import."""
    assert CardSource(url="https://x.example").card_url == "https://x.example/.well-known/agent-card.json"
    assert CardSource(url="https://x.example/a.json").card_url == "https://x.example/a.json"
    for url in ("x.example", "file:///etc/passwd", "https://"):
        with pytest.raises(ConfigurationError, match="the address of an A2A agent"):
            CardSource(url=url)


def _public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _signed(key: ec.EllipticCurvePrivateKey) -> AgentCard:
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    sign = create_agent_card_signer(pem, {"kid": "k", "alg": "ES256", "jku": None, "typ": "JOSE"})
    return sign(agent_card(info(), [operation("forecast")], "https://x.example", {}))
