"""Encryption: a codec that packs a body and encrypts it with AES-256-GCM, with keys that can be rotated.

What it writes is one byte of version, one byte with the length of the key's id, the id, twelve random bytes, and
the ciphertext with its tag; version and id are authenticated too. Within, one byte says whether the body was
packed with zlib first.
"""

from __future__ import annotations

import base64
import binascii
import os
import zlib
from collections.abc import Iterable

from waooaw_celery.errors import ConfigurationError, DecodingFailed
from waooaw_celery.messages.validation import check_id
from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.codecs import Codec, expand, register_codec

NAME = "aes-gcm"
CONTENT_TYPE = "application/x-waooaw-aes-gcm"

_VERSION = 1
_KEY_BYTES, _NONCE_BYTES, _TAG_BYTES = 32, 12, 16
_PLAIN, _ZLIB = b"\0", b"\1"
#: Bodies below this are not packed before they are encrypted.
_PACK_ABOVE = 256


class Keyring:
    """The keys of this process.

    The first of an application's keys encrypts; all of them decrypt. So a key is rotated without a message lost:
    add the new one as the last everywhere, then move it to the front everywhere, then leave the old one out.
    """

    def __init__(self) -> None:
        self._keys: dict[str, bytes] = {}
        self._first: str | None = None

    def take_in(self, keys: Iterable[tuple[str, bytes]]) -> None:
        """Add an application's keys; the first of them encrypts from now on.

        Raises:
            ConfigurationError: another application of this process has another key of the same id.
        """
        added = dict(keys)
        for id_, key in added.items():
            if self._keys.get(id_, key) != key:
                raise ConfigurationError(f"there are two encryption keys with the id {id_!r}: rename one")
        self._keys |= added
        self._first = next(iter(added), self._first)

    def encrypt(self, body: bytes) -> bytes:
        """Pack a body when that makes it smaller, and encrypt it."""
        if self._first is None:  # the codec is not known before there is a key
            raise ConfigurationError("there is no encryption key")
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        packed = zlib.compress(body) if len(body) > _PACK_ABOVE else body
        plain = _ZLIB + packed if len(packed) < len(body) else _PLAIN + body
        head = bytes([_VERSION, len(self._first)]) + self._first.encode()
        nonce = os.urandom(_NONCE_BYTES)
        return head + nonce + AESGCM(self._keys[self._first]).encrypt(nonce, plain, head)

    def decrypt(self, body: bytes, limit: int) -> bytes:
        """Decrypt a body and unpack it, to at most so many bytes.

        Raises:
            DecodingFailed: no key for it is here, it was changed on its way, or it is larger.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        end = 2 + (body[1] if len(body) > 1 else 0)
        if len(body) < end + _NONCE_BYTES + _TAG_BYTES or body[0] != _VERSION:
            raise DecodingFailed("it is not encrypted as this version does it")
        head, nonce = body[:end], body[end : end + _NONCE_BYTES]
        id_ = head[2:].decode("ascii", "replace")
        if id_ not in self._keys:
            raise DecodingFailed(
                f"it is encrypted with the key {id_!a:.80}, which is not in waooaw_encryption_keys"
            )
        try:
            plain = AESGCM(self._keys[id_]).decrypt(nonce, body[end + _NONCE_BYTES :], head)
        except InvalidTag as error:
            raise DecodingFailed("it was changed, or encrypted with another key of the same id") from error
        if plain[:1] == _ZLIB:
            return expand(plain[1:], "zlib", Caps(max_expanded_bytes=limit))
        if len(plain) - 1 > limit:
            raise DecodingFailed(f"it unpacks to more than {limit} bytes")
        return plain[1:]


keyring = Keyring()


def enable(keys: Iterable[str]) -> None:
    """Take in an application's keys, and make the codec known.

    Args:
        keys: each an id, ``=``, and 32 bytes in base64; the first encrypts.

    Raises:
        ConfigurationError: one is none, or ``cryptography`` is not installed.
    """
    read = [_key(key, number) for number, key in enumerate(keys, 1)]
    if not read:
        return
    try:
        import cryptography  # noqa: F401 - only to know whether it is there
    except ImportError as error:
        raise ConfigurationError("for waooaw_encryption_keys install waooaw-celery[crypto]") from error
    keyring.take_in(read)
    register_codec(
        Codec(name=NAME, content_type=CONTENT_TYPE, compress=keyring.encrypt, expand=keyring.decrypt, always=True)
    )


def _key(said: str, number: int) -> tuple[str, bytes]:
    id_, _, text = said.partition("=")
    # Nothing of what was given is shown: an id may be missing.
    problem = f"an encryption key is id=KEY, with {_KEY_BYTES} random bytes in base64; number {number} is not"
    try:
        key = base64.b64decode(text, validate=True)
        check_id(id_, "the id of an encryption key")
    except (binascii.Error, ValueError) as error:
        raise ConfigurationError(problem) from error
    if len(key) != _KEY_BYTES:
        raise ConfigurationError(problem)
    return id_, key
