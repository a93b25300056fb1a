"""Reads the file of principals: who may speak at an edge, how it is recognised, and what it may do."""

from __future__ import annotations

import hashlib
import re
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.errors import ConfigurationError, InvalidMessage
from waooaw_celery.messages.topics.patterns import check_pattern
from waooaw_celery.messages.validation import check_agent_name

#: What an API key begins with, so that scanners of secrets find one that was committed.
KEY_PREFIX = "waooaw_"
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,100}")
_KEYS = frozenset({"from_agent", "may_call", "may_publish", "may_read", "keys", "subjects", "proxy_users"})


@dataclass(frozen=True, slots=True)
class Principals:
    """The known principals, by what recognises them.

    Attributes:
        by_key: by the hash of an API key, as ``sha256:`` and hexadecimal digits.
        by_subject: by the issuer and the subject of a bearer token, with a space between them.
        by_proxy_user: by the name that a trusted proxy gives.
    """

    by_key: dict[str, Principal] = field(default_factory=dict)
    by_subject: dict[str, Principal] = field(default_factory=dict)
    by_proxy_user: dict[str, Principal] = field(default_factory=dict)


def new_key() -> tuple[str, str]:
    """Return a new API key, and its hash for the file.

    A key has 256 random bits. So a plain SHA-256 protects it: there is no list of likely keys to try.
    """
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, hash_key(key)


def hash_key(key: str) -> str:
    """Return the hash of an API key, as the file has it."""
    return f"sha256:{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"


def read_principals(path: Path) -> Principals:
    """Read the file of principals, in TOML: a table for each, with its name.

    Args:
        path: the file.

    Raises:
        ConfigurationError: the file cannot be read, or an entry is invalid; the error names the entry and the key.

    Example:
        A file with one principal::

            [portal]
            from_agent = "portal"
            keys = ["sha256:9f86d0…"]
            may_call = ["weather.*"]
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"the file of principals {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the file of principals {path} is not TOML: {error}") from error
    return parse_principals(tables, str(path))


def parse_principals(tables: Mapping[str, Any], where: str = "principals") -> Principals:
    """Return the principals of tables, as the file has them.

    Args:
        tables: a table for each principal, by its name.
        where: what errors call it.

    Raises:
        ConfigurationError: an entry is invalid.
    """
    found = Principals()
    for name, table in tables.items():
        _add(found, f"{where}, [{name}]", name, table)
    if not (found.by_key or found.by_subject or found.by_proxy_user):
        raise ConfigurationError(
            f"{where} recognises nobody: give an entry keys, subjects or proxy_users. "
            "`waooaw serve --add-key NAME` prints an entry"
        )
    return found


def _add(found: Principals, where: str, name: str, table: object) -> None:
    if not _NAME.fullmatch(name) or not isinstance(table, dict):
        raise ConfigurationError(f'{where} is no entry: write [name], then from_agent = "…" and keys = ["…"]')
    if unknown := set(table) - _KEYS:
        raise ConfigurationError(
            f"{where} has the unknown key {min(unknown)!r}: the keys are {', '.join(sorted(_KEYS))}"
        )
    may_read = table.get("may_read", False)
    if not isinstance(may_read, bool):
        raise ConfigurationError(f"{where}: may_read must be true or false, not {may_read!r:.80}")
    try:
        principal = Principal(
            name=name,
            from_agent=check_agent_name(table.get("from_agent"), "from_agent"),
            may_call=_texts(table, "may_call"),
            may_publish=tuple(check_pattern(each) for each in _texts(table, "may_publish")),
            may_read=may_read,
        )
        keys, subjects, users = (_texts(table, each) for each in ("keys", "subjects", "proxy_users"))
    except InvalidMessage as error:
        raise ConfigurationError(f"{where}: {error}") from error
    for key in keys:
        if not _HASH.fullmatch(key):
            raise ConfigurationError(
                f"{where}: keys must be hashes, sha256: and 64 hexadecimal digits, never the key itself. "
                f"`waooaw serve --add-key {name}` prints both"
            )
    for kind, by, texts in (
        ("key", found.by_key, keys),
        ("subject", found.by_subject, subjects),
        ("proxy user", found.by_proxy_user, users),
    ):
        for text in texts:
            if text in by:
                raise ConfigurationError(f"{where}: another entry, {by[text].name}, has the same {kind}")
            by[text] = principal


def _texts(table: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = table.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, str) and each for each in found):
        raise InvalidMessage(f"{name} must be a list of texts, not {found!r:.80}")
    return tuple(found)
