"""The agent card: what an agent can be asked for, and where, from the registry.

The public card shows every method and workflow of an agent: their names, and what their docstrings say in the
first paragraph, become public to everybody who reaches the edge. The extended card shows only what the
authenticated principal may call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    APIKeySecurityScheme,
    HTTPAuthSecurityScheme,
    MutualTlsSecurityScheme,
    OpenIdConnectSecurityScheme,
    SecurityRequirement,
    SecurityScheme,
    StringList,
)
from a2a.utils.constants import PROTOCOL_VERSION_1_0, TransportProtocol

from waooaw_celery.discovery.agent_info import AgentInfo
from waooaw_celery.edges.a2a.values import DATA, TEXT
from waooaw_celery.edges.gateway.catalogue import Operation
from waooaw_celery.errors import ConfigurationError

#: The version of an agent that declares none: the card must have one.
_NO_VERSION = "0"


def agent_card(
    info: AgentInfo,
    operations: Sequence[Operation],
    public_url: str,
    schemes: Mapping[str, Mapping[str, str]],
) -> AgentCard:
    """Return the card of an agent.

    Args:
        info: what the registry knows of it.
        operations: the methods and workflows that the card shows.
        public_url: the address of the edge as clients see it.
        schemes: how clients authenticate, as OpenAPI has it, by name; each one is enough.

    Raises:
        ConfigurationError: A2A has no such security scheme.
    """
    described = info.metadata.get("description")
    base = f"{public_url.rstrip('/')}/a2a/{quote(info.name)}"
    card = AgentCard(
        name=info.name,
        description=described if isinstance(described, str) else f"The agent {info.name}.",
        version=info.versions[-1] if info.versions else _NO_VERSION,
        supported_interfaces=[
            _interface(base, TransportProtocol.JSONRPC),
            _interface(f"{base}/v1", TransportProtocol.HTTP_JSON),
        ],
        capabilities=AgentCapabilities(streaming=True, push_notifications=True, extended_agent_card=True),
        default_input_modes=[TEXT, DATA],
        default_output_modes=[TEXT, DATA],
        skills=[_skill(info, each) for each in operations],
    )
    for name, scheme in schemes.items():
        card.security_schemes[name].CopyFrom(_security_scheme(name, scheme))
        card.security_requirements.append(SecurityRequirement(schemes={name: StringList()}))
    return card


def _interface(url: str, binding: TransportProtocol) -> AgentInterface:
    return AgentInterface(url=url, protocol_binding=binding.value, protocol_version=PROTOCOL_VERSION_1_0)


def _skill(info: AgentInfo, operation: Operation) -> AgentSkill:
    capabilities = [str(each) for each in info.capabilities if each.method in (None, operation.method)]
    kind = "workflow" if operation.is_workflow else "method"
    return AgentSkill(
        id=operation.method,
        name=operation.method.replace("_", " "),
        description=operation.description or f"The {kind} {operation.method}.",
        tags=[*dict.fromkeys([*info.tags, *capabilities])] or [kind],
        input_modes=[TEXT, DATA],
        output_modes=[TEXT, DATA],
    )


def _security_scheme(name: str, scheme: Mapping[str, Any]) -> SecurityScheme:
    match scheme.get("type"):
        case "apiKey":
            key = APIKeySecurityScheme(location=scheme["in"], name=scheme["name"])
            return SecurityScheme(api_key_security_scheme=key)
        case "http":
            form = scheme.get("bearerFormat", "")
            http = HTTPAuthSecurityScheme(scheme=scheme["scheme"], bearer_format=form)
            return SecurityScheme(http_auth_security_scheme=http)
        case "openIdConnect":
            oidc = OpenIdConnectSecurityScheme(open_id_connect_url=scheme["openIdConnectUrl"])
            return SecurityScheme(open_id_connect_security_scheme=oidc)
        case "mutualTLS":
            return SecurityScheme(mtls_security_scheme=MutualTlsSecurityScheme())
        case other:
            raise ConfigurationError(f"A2A has no security scheme {other!r:.80}, which {name!r} is")
