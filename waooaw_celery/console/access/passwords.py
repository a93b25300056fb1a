"""The file with the users of basic authentication, and how their passwords are stored.

Each line is ``name:roles:hash``. The hash is that of scrypt (RFC 7914) with the cost that OWASP recommends, 2^17.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from waooaw_celery.console.access.roles import Person, Role, parse_role
from waooaw_celery.errors import ConfigurationError

#: The cost of scrypt: N, r and p. One verification takes about a third of a second and 128 MiB of memory.
COST = (2**17, 8, 1)
#: Bytes of salt and of hash.
_SALT_BYTES, _HASH_BYTES = 16, 32
_NAME = re.compile(r"[^\s:]{1,100}")


@dataclass(frozen=True, slots=True)
class User:
    """A line of the file."""

    person: Person
    hashed: str


def hash_password(password: str) -> str:
    """Return what the file has in place of a password, such as ``scrypt$131072$8$1$<salt>$<hash>``."""
    salt = os.urandom(_SALT_BYTES)
    return "$".join(("scrypt", *map(str, COST), _text(salt), _text(_scrypt(password, salt, *COST))))


def is_password(password: str, hashed: str) -> bool:
    """Whether a password belongs to a hash of ``hash_password``."""
    _, n, r, p, salt, expected = hashed.split("$")
    found = _scrypt(password, base64.b64decode(salt), int(n), int(r), int(p))
    return hmac.compare_digest(found, base64.b64decode(expected))


def read_users(path: Path) -> Mapping[str, User]:
    """Return the users of a file by name.

    Raises:
        ConfigurationError: the file cannot be read, others may read it, or a line is wrong.
    """
    try:
        lines = path.read_text().splitlines()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the users cannot be read from {path}: {error}") from error
    if mode & 0o077:
        raise ConfigurationError(f"others may read or change {path}: run chmod 600 {path}")
    users: dict[str, User] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        user = _user(f"{path}, line {number}", line.strip())
        if user.person.name in users:
            raise ConfigurationError(f"{path}, line {number}: {user.person.name} has a line already")
        users[user.person.name] = user
    if not users:
        raise ConfigurationError(f"{path} has no user: add a line of `waooaw console --add-user NAME`")
    return users


def user_line(name: str, roles: frozenset[Role], password: str) -> str:
    """Return the line of a user.

    Raises:
        ConfigurationError: the name has a space or a colon, or the password has fewer than 12 characters.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} is no name of a user: use 1 to 100 characters, no space and no colon")
    if len(password) < 12:
        raise ConfigurationError("the password is too short: use at least 12 characters")
    return f"{name}:{','.join(sorted(roles))}:{hash_password(password)}"


def _user(where: str, line: str) -> User:
    parts = line.split(":")
    if len(parts) != 3 or not _NAME.fullmatch(parts[0]):
        raise ConfigurationError(f"{where} is not name:roles:hash: make it with `waooaw console --add-user NAME`")
    name, roles, hashed = parts
    try:
        kind, n, r, p, salt, expected = hashed.split("$")
        sizes = len(base64.b64decode(salt, validate=True)), len(base64.b64decode(expected, validate=True))
        valid = (
            kind == "scrypt" and sizes == (_SALT_BYTES, _HASH_BYTES) and (int(n), int(r), int(p)) >= (2**14, 8, 1)
        )
    except ValueError:
        valid = False
    if not valid:
        raise ConfigurationError(
            f"{where} has no hash of a password: make it with `waooaw console --add-user NAME`"
        )
    return User(Person(name=name, roles=frozenset(parse_role(each) for each in roles.split(","))), hashed)


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    given = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(given, salt=salt, n=n, r=r, p=p, maxmem=2 * 128 * n * r, dklen=_HASH_BYTES)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
