"""The signature of webhooks, as the Standard Webhooks specification has it. Receivers need nothing else."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence

from waooaw_celery.errors import ConfigurationError, NotPermitted

#: What a secret begins with in the text form of the specification.
SECRET_PREFIX = "whsec_"  # noqa: S105 - that is no secret
#: The sizes of a secret in bytes that the specification allows.
_MIN_SECRET, _MAX_SECRET = 24, 64
_ID, _TIMESTAMP, _SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"


def secret_bytes(secret: str) -> bytes:
    """Return the bytes of a secret.

    Args:
        secret: base64, with ``whsec_`` before it or not.

    Raises:
        ConfigurationError: it is not base64 of 24 to 64 bytes. The error does not repeat it.
    """
    try:
        found = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if not _MIN_SECRET <= len(found) <= _MAX_SECRET:
        raise ConfigurationError(
            f"the secret of a webhook must be {SECRET_PREFIX} and the base64 of {_MIN_SECRET} to {_MAX_SECRET} "
            "random bytes: `openssl rand -base64 32` makes one"
        )
    return found


def signed_headers(secrets: Sequence[str], id_: str, body: bytes, at: int) -> dict[str, str]:
    """Return the headers that sign a webhook.

    Args:
        secrets: the secrets; several while one replaces another.
        id_: the id, which is the same for each attempt.
        body: what is sent.
        at: the time of the attempt, in seconds since 1970.
    """
    signatures = " ".join(f"v1,{_signature(secret_bytes(each), id_, at, body)}" for each in secrets)
    return {_ID: id_, _TIMESTAMP: str(at), _SIGNATURE: signatures}


def verify_webhook(secret: str, headers: Mapping[str, str], body: bytes, *, tolerance: float = 300.0) -> None:
    """Check that a webhook comes from who has the secret, is unchanged, and is not an old one sent again.

    Args:
        secret: the secret, as the sender has it.
        headers: the headers of the request; their names in any case.
        body: the body, as it arrived.
        tolerance: by how many seconds the time stamp may differ from this computer's clock.

    Raises:
        NotPermitted: the signature or the time stamp is missing or wrong.
        ConfigurationError: the secret is no secret.

    Example:
        >>> verify_webhook(SECRET, request.headers, await request.body())
    """
    found = {name.lower(): value for name, value in headers.items()}
    if not all(found.get(name) for name in (_ID, _TIMESTAMP, _SIGNATURE)):
        raise NotPermitted(f"the webhook needs the headers {_ID}, {_TIMESTAMP} and {_SIGNATURE}")
    stamp = found[_TIMESTAMP]
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 15):
        raise NotPermitted(f"{_TIMESTAMP} must be a whole number of seconds since 1970")
    if abs(time.time() - int(stamp)) > tolerance:
        raise NotPermitted(
            f"the webhook's time stamp differs from this computer's clock by more than {tolerance:g} s"
        )
    expected = _signature(secret_bytes(secret), found[_ID], int(stamp), body).encode()
    given = [each.removeprefix("v1,") for each in found[_SIGNATURE].split() if each.startswith("v1,")]
    if not any(hmac.compare_digest(expected, each.encode()) for each in given):
        raise NotPermitted("the webhook's signature is wrong")


def _signature(secret: bytes, id_: str, at: int, body: bytes) -> str:
    content = f"{id_}.{at}.".encode() + body
    return base64.b64encode(hmac.digest(secret, content, hashlib.sha256)).decode()
