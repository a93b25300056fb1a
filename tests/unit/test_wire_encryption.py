"""Encryption: only the key decrypts a body, and keys are rotated without losing a message."""

from __future__ import annotations

import base64
import random
import sys
from contextlib import closing

import pytest
from kombu import compression

from waooaw_celery import create_app
from waooaw_celery.errors import ConfigurationError, DecodingFailed
from waooaw_celery.wire import encryption
from waooaw_celery.wire.caps import (
    MIB,
    Caps,
)
from waooaw_celery.wire.codecs import expand
from waooaw_celery.wire.encryption import CONTENT_TYPE, NAME, Keyring, enable
from waooaw_celery.wire.packer import Packer

KEYS = {"old": bytes(range(32)), "new": bytes(32)}


KEY_SETTINGS = {id_: f"{id_}={base64.b64encode(key).decode()}" for id_, key in KEYS.items()}


def keyring_of(*ids: str) -> Keyring:
    keyring = Keyring()
    keyring.add_keys((id_, KEYS[id_]) for id_ in ids)
    return keyring


@pytest.mark.parametrize("body", [b"", b"x", b"again and " * 1000])
def test_an_encrypted_body_is_decrypted(body: bytes) -> None:
    """It is compressed if that makes it smaller, and no two encryptions are the same."""
    encrypted = keyring_of("old").encrypt(body)
    assert b"again" not in encrypted
    assert len(encrypted) < len(body) + 60
    assert keyring_of("old").decrypt(encrypted, len(body)) == body
    assert encrypted != keyring_of("old").encrypt(body)


def test_keys_are_rotated() -> None:
    """The first key encrypts, all keys decrypt, and a removed key no longer does."""
    before, after = keyring_of("old").encrypt(b"x"), keyring_of("new", "old").encrypt(b"x")
    assert keyring_of("old", "new").decrypt(after, 1) == keyring_of("new", "old").decrypt(before, 1) == b"x"
    assert b"new" in after
    with pytest.raises(DecodingFailed, match="with the key 'old', which is not in waooaw_encryption_keys"):
        keyring_of("new").decrypt(before, 1)


def test_an_altered_body_is_refused() -> None:
    """A single changed bit anywhere is detected, and so is truncation."""
    keyring = keyring_of("old")
    encrypted = keyring.encrypt(b"to: 100 EUR")
    for position in range(len(encrypted)):
        damaged = bytearray(encrypted)
        damaged[position] ^= 1
        with pytest.raises(DecodingFailed):
            keyring.decrypt(bytes(damaged), 100)
        with pytest.raises(DecodingFailed):
            keyring.decrypt(encrypted[:position], 100)


def test_a_decrypted_body_is_bounded() -> None:
    """A body that is too large is refused, compressed or not."""
    keyring = keyring_of("old")
    for body in (bytes(20 * MIB), b"x" * 100):
        encrypted = keyring.encrypt(body)
        with pytest.raises(DecodingFailed, match="more than 99 bytes"):
            keyring.decrypt(encrypted, 99)


def test_encryption_is_a_codec() -> None:
    """When chosen it encrypts every body, however small, and Kombu can decrypt it."""
    enable(KEY_SETTINGS.values())
    packed = Packer(Caps()).pack("short", "json", NAME)
    assert packed.codec == CONTENT_TYPE
    assert b"short" not in packed.body  # type: ignore[operator]
    assert expand(packed.body, CONTENT_TYPE, Caps()) == b'"short"'  # type: ignore[arg-type]
    assert compression.decompress(packed.body, CONTENT_TYPE) == b'"short"'


@pytest.mark.parametrize(
    "key", ["", "id", "id=", "id=zzz", "=AAAA", "i d=" + base64.b64encode(bytes(32)).decode(), "id=AAAA"]
)
def test_an_invalid_key_is_refused_without_showing_it(key: str) -> None:
    """The error says how to write a key, and shows no part of the value."""
    with pytest.raises(
        ConfigurationError, match="number 1 is invalid: write id=KEY, where KEY is 32 random bytes"
    ) as refused:
        enable([key])
    assert "AAAA" not in str(refused.value)


def test_two_keys_with_one_id_are_refused() -> None:
    """Otherwise messages encrypted with the first could no longer be read."""
    keyring = keyring_of("old")
    with pytest.raises(ConfigurationError, match="two encryption keys have the id 'old'"):
        keyring.add_keys([("old", bytes(32))])


def test_an_application_takes_its_keys_from_its_settings() -> None:
    """They can be set as one string, as in the environment, and the codec is then accepted."""
    with closing(create_app(waooaw_encryption_keys=",".join(KEY_SETTINGS.values()))) as app:
        assert CONTENT_TYPE in (app.packer.caps.codecs or ())
        assert app.packer.pack("x", None, NAME).codec == CONTENT_TYPE


def test_an_encrypted_body_has_six_parts() -> None:
    """Version, length of the id, id, nonce of 12 bytes, ciphertext, tag of 16 bytes."""
    keyring = Keyring()
    with pytest.raises(ConfigurationError, match="there is no encryption key"):
        keyring.encrypt(b"x")
    keyring.add_keys([("first", bytes(32)), ("second", bytes(31) + b"\1")])
    body = keyring.encrypt(b"secret")
    assert body[:7] == b"\x01\x05first"
    assert len(body) == 7 + 12 + 1 + 6 + 16
    keyring.add_keys([])
    assert keyring.encrypt(b"x")[:7] == b"\x01\x05first"
    keyring.add_keys([("third", bytes(32))])
    assert keyring.encrypt(b"x")[:7] == b"\x01\x05third"
    assert keyring.decrypt(keyring.encrypt(b""), 0) == b""
    assert keyring.decrypt(body, 6) == b"secret"
    for damaged, reason in (
        (b"", "known format"),
        (b"\x01", "known format"),
        (body[:34], "known format"),
        (b"\x02" + body[1:], "known format"),
        (body[:35], "altered"),
        (b"\x01\x05other" + body[7:], "with the key 'other', which is not in waooaw_encryption_keys"),
        (b"\x01\x06second" + body[7:], "altered, or encrypted with a different key"),
        (body[:-1] + bytes([body[-1] ^ 1]), "altered"),
    ):
        with pytest.raises(DecodingFailed, match=reason):
            keyring.decrypt(damaged, 100)
    with pytest.raises(DecodingFailed, match=r"^it decompresses to more than 5 bytes$"):
        keyring.decrypt(body, 5)


def test_encryption_needs_keys_and_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys nothing is registered; without ``cryptography`` the error says what to install."""
    monkeypatch.setitem(sys.modules, "cryptography", None)
    encryption.enable([])
    with pytest.raises(ConfigurationError, match=r"for waooaw_encryption_keys install waooaw-celery\[crypto\]"):
        encryption.enable([f"k={base64.b64encode(bytes(32)).decode()}"])


@pytest.mark.parametrize(("size", "compressed"), [(256, False), (257, True)])
def test_a_body_is_compressed_before_encryption_above_256_bytes(size: int, compressed: bool) -> None:
    """A smaller body stays as it is, and so does one that would become larger."""
    keyring = Keyring()
    keyring.add_keys([("k", bytes(32))])
    encrypted = keyring.encrypt(b"x" * size)
    assert (len(encrypted) < size) is compressed
    assert keyring.decrypt(encrypted, size) == b"x" * size
    with pytest.raises(DecodingFailed, match=f"more than {size - 1} bytes"):
        keyring.decrypt(encrypted, size - 1)
    noise = random.Random(2).randbytes(300)  # noqa: S311 - nothing here is secret
    assert len(keyring.encrypt(noise)) == 3 + 12 + 1 + 300 + 16
