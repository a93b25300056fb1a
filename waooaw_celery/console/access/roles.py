"""Roles, and the person who makes a request."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from waooaw_celery.errors import ConfigurationError


class Role(StrEnum):
    """What a person may do.

    VIEWER: see everything but payloads. OPERATOR: also change what runs, such as retry a dead letter. OFFICER:
    also see payloads, and manage holds and erasures. An officer is no operator unless the person has both roles.
    """

    VIEWER = "viewer"
    OPERATOR = "operator"
    OFFICER = "officer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who makes a request.

    Attributes:
        name: the name, as it is recorded with each change.
        roles: what the person may do.
    """

    name: str
    roles: frozenset[Role]

    def may(self, role: Role) -> bool:
        """Whether the person has a role. Everybody who has one is a viewer too."""
        return role in self.roles or (role is Role.VIEWER and bool(self.roles))


def roles_of(names: Collection[str], grants: Mapping[Role, Collection[str]]) -> frozenset[Role]:
    """Return the roles that are granted to a person.

    Args:
        names: the person's name and groups.
        grants: who has each role, by name or group; ``*``: everybody who is authenticated.

    Example:
        >>> roles_of(["ada", "sre"], {Role.VIEWER: ["*"], Role.OPERATOR: ["sre"]})
        frozenset({<Role.VIEWER: 'viewer'>, <Role.OPERATOR: 'operator'>})
    """
    known = {*names, "*"}
    return frozenset(role for role, granted in grants.items() if known & set(granted))


def parse_role(text: str) -> Role:
    """Return a role by its name.

    Raises:
        ConfigurationError: there is no such role.
    """
    try:
        return Role(text.strip().lower())
    except ValueError:
        raise ConfigurationError(f"{text!r} is no role: the roles are {', '.join(Role)}") from None
