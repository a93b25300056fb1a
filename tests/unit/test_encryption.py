"""An encrypted body can be read with its key, and with nothing else; keys are rotated without losing a message."""

from __future__ import annotations

import base64
from contextlib import closing

import pytest
from kombu import compression

from waooaw_celery import create_app
from waooaw_celery.errors import ConfigurationError, DecodingFailed
from waooaw_celery.wire.caps import MIB, Caps
from waooaw_celery.wire.codecs import expand
from waooaw_celery.wire.encryption import CONTENT_TYPE, NAME, Keyring, enable
from waooaw_celery.wire.packer import Packer

KEYS = {"old": bytes(range(32)), "new": bytes(32)}
SAID = {id_: f"{id_}={base64.b64encode(key).decode()}" for id_, key in KEYS.items()}


def ring(*ids: str) -> Keyring:
    keyring = Keyring()
    keyring.take_in((id_, KEYS[id_]) for id_ in ids)
    return keyring


@pytest.mark.parametrize("body", [b"", b"x", b"again and " * 1000])
def test_what_was_encrypted_is_decrypted(body: bytes) -> None:
    """With the key the body is back; it was packed when that made it smaller, and never twice the same."""
    encrypted = ring("old").encrypt(body)
    assert b"again" not in encrypted
    assert len(encrypted) < len(body) + 60
    assert ring("old").decrypt(encrypted, len(body)) == body
    assert encrypted != ring("old").encrypt(body)


def test_keys_are_rotated() -> None:
    """The first key encrypts, all decrypt, and one that was left out does not any more."""
    before, after = ring("old").encrypt(b"x"), ring("new", "old").encrypt(b"x")
    assert ring("old", "new").decrypt(after, 1) == ring("new", "old").decrypt(before, 1) == b"x"
    assert b"new" in after
    with pytest.raises(DecodingFailed, match="with the key 'old', which is not in waooaw_encryption_keys"):
        ring("new").decrypt(before, 1)


def test_what_was_changed_is_refused() -> None:
    """A single bit anywhere, or a missing end, is noticed."""
    keyring = ring("old")
    encrypted = keyring.encrypt(b"to: 100 EUR")
    for position in range(len(encrypted)):
        damaged = bytearray(encrypted)
        damaged[position] ^= 1
        with pytest.raises(DecodingFailed):
            keyring.decrypt(bytes(damaged), 100)
        with pytest.raises(DecodingFailed):
            keyring.decrypt(encrypted[:position], 100)


def test_an_encrypted_bomb_is_stopped() -> None:
    """What unpacks to more than is accepted is refused, packed or not."""
    keyring = ring("old")
    for body in (bytes(20 * MIB), b"x" * 100):
        encrypted = keyring.encrypt(body)
        with pytest.raises(DecodingFailed, match="more than 99 bytes"):
            keyring.decrypt(encrypted, 99)


def test_it_is_a_codec_like_the_others() -> None:
    """Whoever names it gets every body encrypted, and Kombu unpacks it by itself."""
    enable(SAID.values())
    packed = Packer(Caps()).pack("short", "json", NAME)
    assert packed.codec == CONTENT_TYPE
    assert b"short" not in packed.body  # type: ignore[operator]
    assert expand(packed.body, CONTENT_TYPE, Caps()) == b'"short"'  # type: ignore[arg-type]
    assert compression.decompress(packed.body, CONTENT_TYPE) == b'"short"'


@pytest.mark.parametrize(
    "key", ["", "id", "id=", "id=zzz", "=AAAA", "i d=" + base64.b64encode(bytes(32)).decode(), "id=AAAA"]
)
def test_what_is_no_key_is_told_without_telling_it(key: str) -> None:
    """The sentence says what a key is, and shows none."""
    with pytest.raises(ConfigurationError, match="id=KEY, with 32 random bytes in base64; number 1") as refused:
        enable([key])
    assert "AAAA" not in str(refused.value)


def test_two_keys_of_one_id_are_refused() -> None:
    """A message could not be read any more when ids were given twice."""
    keyring = ring("old")
    with pytest.raises(ConfigurationError, match="two encryption keys with the id 'old'"):
        keyring.take_in([("old", bytes(32))])


def test_an_application_takes_its_keys_from_its_settings() -> None:
    """They may be written in the environment, and what they encrypted is accepted."""
    with closing(create_app(waooaw_encryption_keys=",".join(SAID.values()))) as app:
        assert CONTENT_TYPE in (app.packer.caps.codecs or ())
        assert app.packer.pack("x", None, NAME).codec == CONTENT_TYPE
