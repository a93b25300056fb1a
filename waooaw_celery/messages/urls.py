"""Checks the URLs of servers, for all settings alike, and shows them without what may be secret."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from waooaw_celery.errors import ConfigurationError

#: What a user name or password may not contain, and how each character is written.
_ENCODED = "@ as %40, : as %3A, / as %2F, ? as %3F, # as %23, [ as %5B, ] as %5D, ; as %3B, % as %25"
_ENCODE = f"percent-encode these characters in the user name and the password: {_ENCODED}"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_PORT = re.compile(r"\d{1,5}")


def check_url(setting: str, url: str) -> str:
    """Return a server's URL if every driver reads the same server, user and password from it.

    The error shows no part of the URL but its scheme: what looks like a host may be the rest of a password.

    Args:
        setting: name of the setting, for the error.
        url: the URL.

    Raises:
        ConfigurationError: a character is not percent-encoded, or the URL has no scheme or an invalid port.

    Example:
        >>> check_url("broker_url", "redis://:p%40ss@localhost:6379/0")
        'redis://:p%40ss@localhost:6379/0'
    """
    problem = _problem(url)
    if problem is None:
        return url
    scheme, found, _ = url.partition("://")
    shown = f" ({scheme}://…)" if found and _SCHEME.fullmatch(scheme) else ""
    raise ConfigurationError(f"{setting}{shown} cannot be read: {problem}")


def check_urls(setting: str, urls: str | Sequence[str] | None) -> None:
    """Check the URLs of a setting that takes one, a list, or several separated by ``;``.

    Raises:
        ConfigurationError: as ``check_url``.
    """
    for url in separated_urls(urls):
        check_url(setting, url)


def shown_url(url: object) -> str:
    """Return a URL without user, password and query, or only its scheme if it cannot be read."""
    if not isinstance(url, str):
        return ", ".join(shown_url(each) for each in url) if isinstance(url, list | tuple) else repr(url)
    scheme, found, rest = url.partition("://")
    if not found:
        return url if re.fullmatch(r"[\w.-]{1,40}", url) else "(not shown)"
    if _problem(url) is not None:
        return f"{scheme}://…"
    authority, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def separated_urls(urls: str | Sequence[str] | None) -> Iterable[str]:
    """Return the URLs of a setting that takes one, a list, or several separated by ``;``."""
    for text in [urls] if isinstance(urls, str) else urls or ():
        if not isinstance(text, str):
            continue
        # A ``;`` begins another URL only where one follows. Elsewhere it is part of a password or a path.
        yield from re.split(r";(?=[A-Za-z][A-Za-z0-9+.-]*://)", text)


def _problem(url: str) -> str | None:
    scheme, found, rest = url.partition("://")
    if any(ord(character) < 0x20 or character == "\x7f" for character in url):
        return "it contains a line end or another control character"
    if not found or not _SCHEME.fullmatch(scheme):
        return "it must begin with a scheme, as in redis://localhost:6379/0 or amqp://guest:guest@localhost:5672//"
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    after = rest[len(authority) :]
    user, at, hosts = authority.rpartition("@")
    if authority and not at and _holds_user_part(after):
        return _ENCODE
    if any(character in user for character in "@[];"):
        return _ENCODE
    for host in hosts.split(","):
        port = host.rpartition("]")[2].partition(":")[2]
        if port and (not _PORT.fullmatch(port) or int(port) > 65535):
            return f"its port is not a number from 0 to 65535. If this is part of the password: {_ENCODE}"
    try:
        urlsplit(url)
    except ValueError:  # its text would show the password
        return _ENCODE
    return None


def _holds_user_part(after: str) -> bool:
    """Return whether the part after the first ``/``, ``?`` or ``#`` holds the rest of a password."""
    path, _, query = after.partition("?")
    return "@" in path or "@" in query.partition("=")[0]
