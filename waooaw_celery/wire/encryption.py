"""Encryption: a codec that compresses a body and encrypts it with AES-256-GCM, with keys that can be rotated.

An encrypted body is one byte of version, one byte with the length of the key's id, the id, a nonce of twelve
random bytes, and the ciphertext with its tag. Version and id are authenticated too. The first byte of the
plaintext is 1 if the body was compressed with zlib.
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
#: Bodies of up to this many bytes are not compressed before they are encrypted.
_COMPRESS_ABOVE = 256


class Keyring:
    """The encryption keys of this process.

    The first key of an application encrypts; all of its keys decrypt. To rotate a key without losing a message,
    add the new key as the last everywhere, then move it to the front everywhere, then remove the old one.
    """

    def __init__(self) -> None:
        self._keys: dict[str, bytes] = {}
        self._encryption_id: str | None = None

    def add_keys(self, keys: Iterable[tuple[str, bytes]]) -> None:
        """Add the keys of an application. The first of them encrypts from now on.

        Args:
            keys: Pairs of an id and a key of 32 bytes.

        Raises:
            ConfigurationError: Another application of this process has a different key with the same id.
        """
        added = dict(keys)
        for id_, key in added.items():
            if self._keys.get(id_, key) != key:
                raise ConfigurationError(f"two encryption keys have the id {id_!r}: rename one")
        self._keys |= added
        self._encryption_id = next(iter(added), self._encryption_id)

    def encrypt(self, body: bytes) -> bytes:
        """Compress a body if that makes it smaller, and encrypt it.

        Raises:
            ConfigurationError: There is no key.
        """
        if self._encryption_id is None:
            raise ConfigurationError("there is no encryption key: set waooaw_encryption_keys")
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        compressed = zlib.compress(body) if len(body) > _COMPRESS_ABOVE else body
        plaintext = _ZLIB + compressed if len(compressed) < len(body) else _PLAIN + body
        head = bytes([_VERSION, len(self._encryption_id)]) + self._encryption_id.encode()
        nonce = os.urandom(_NONCE_BYTES)
        return head + nonce + AESGCM(self._keys[self._encryption_id]).encrypt(nonce, plaintext, head)

    def decrypt(self, body: bytes, max_bytes: int) -> bytes:
        """Decrypt a body and decompress it, to at most ``max_bytes``.

        Raises:
            DecodingFailed: This process lacks its key, or the body was altered or is too large.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        end = 2 + (body[1] if len(body) > 1 else 0)
        if len(body) < end + _NONCE_BYTES + _TAG_BYTES or body[0] != _VERSION:
            raise DecodingFailed("it is not encrypted in a known format")
        head, nonce = body[:end], body[end : end + _NONCE_BYTES]
        id_ = head[2:].decode("ascii", "replace")
        if id_ not in self._keys:
            raise DecodingFailed(
                f"it is encrypted with the key {id_!a:.80}, which is not in waooaw_encryption_keys"
            )
        try:
            plaintext = AESGCM(self._keys[id_]).decrypt(nonce, body[end + _NONCE_BYTES :], head)
        except InvalidTag as error:
            raise DecodingFailed("it was altered, or encrypted with a different key of the same id") from error
        if plaintext[:1] == _ZLIB:
            return expand(plaintext[1:], "zlib", Caps(max_expanded_bytes=max_bytes))
        if len(plaintext) - 1 > max_bytes:
            raise DecodingFailed(f"it decompresses to more than {max_bytes} bytes")
        return plaintext[1:]


keyring = Keyring()


def enable(keys: Iterable[str]) -> None:
    """Add the keys of an application to this process, and register the codec. Without keys, do nothing.

    Args:
        keys: Each an id, ``=``, and 32 bytes in base64. The first encrypts.

    Raises:
        ConfigurationError: A key is invalid, or ``cryptography`` is not installed.
    """
    parsed = [_parse_key(key, number) for number, key in enumerate(keys, 1)]
    if not parsed:
        return
    try:
        import cryptography  # noqa: F401 - only to check that it is installed
    except ImportError as error:
        raise ConfigurationError("for waooaw_encryption_keys install waooaw-celery[crypto]") from error
    keyring.add_keys(parsed)
    register_codec(
        Codec(
            name=NAME,
            content_type=CONTENT_TYPE,
            compress=keyring.encrypt,
            decompress=keyring.decrypt,
            always=True,
        )
    )


def _parse_key(text: str, number: int) -> tuple[str, bytes]:
    id_, _, encoded = text.partition("=")
    # The error shows no part of the text: without an id, all of it may be the key.
    problem = (
        f"encryption key number {number} is invalid: write id=KEY, "
        f"where KEY is {_KEY_BYTES} random bytes in base64"
    )
    try:
        key = base64.b64decode(encoded, validate=True)
        check_id(id_, "the id of an encryption key")
    except (binascii.Error, ValueError) as error:
        raise ConfigurationError(problem) from error
    if len(key) != _KEY_BYTES:
        raise ConfigurationError(problem)
    return id_, key
