"""References to large payloads: their form, what is refused, and the stores."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from waooaw_celery.app.publishing.large_payloads import LargePayloads, open_store
from waooaw_celery.errors import (
    ConfigurationError,
    DecodingFailed,
    EncodingFailed,
    InvalidMessage,
    PayloadAltered,
    PayloadMissing,
)
from waooaw_celery.messages.enums import RetentionPolicy
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.publish_options import PublishOptions
from waooaw_celery.messages.references.reference import Reference
from waooaw_celery.store.objects.files import FileStore
from waooaw_celery.store.objects.object_store import NewObject, kept_until, new_key, stored_at
from waooaw_celery.wire.caps import Caps
from waooaw_celery.wire.formats import decode, find_format
from waooaw_celery.wire.packer import Packer
from waooaw_celery.wire.references import arguments_in

KEY = f"2027-02-28/20261130T120000-{'0' * 32}"
FIELDS: dict[str, Any] = {
    "key": KEY,
    "size": 3,
    "sha256": hashlib.sha256(b"abc").hexdigest(),
    "content_type": "application/json",
    "content_encoding": "utf-8",
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": "../../etc/passwd"},
        {"key": f"2027-02-28/../{KEY}"},
        {"key": None},
        {"size": -1},
        {"size": True},
        {"sha256": "no"},
        {"content_type": ""},
        {"content_encoding": "a\nb"},
        {"codec": 7},
        {"more": 1},
    ],
    ids=str,
)
def test_an_invalid_reference_is_refused(wrong: dict[str, Any]) -> None:
    """No field of a reference that another program wrote is trusted, and no key leaves the store."""
    with pytest.raises(InvalidMessage):
        Reference.of_form(FIELDS | wrong)


@pytest.mark.parametrize(
    "body", ["[[1], {}, {}]", "[[], {}, {}]", '[[{"key": 1}], {}, {}]', '[[{}], {"a": 1}, {}]']
)
def test_a_body_without_a_valid_reference_is_refused(body: str) -> None:
    """The guard refuses it, so that the message becomes a dead letter."""
    with pytest.raises(DecodingFailed):
        decode(body, find_format("waooaw-reference").content_type, "utf-8", Caps())


def test_a_reference_survives_the_wire_and_the_ledger() -> None:
    """The body and the publish options return an equal reference."""
    reference, format_ = Reference(**FIELDS), find_format("waooaw-reference")
    text = format_.encode(([reference], {}, {"chain": None}))
    assert decode(text, format_.content_type, "utf-8", Caps()) == ([reference], {}, {"chain": None})
    assert PublishOptions.from_json(PublishOptions(reference=reference).to_json()).reference == reference


def test_a_payload_cannot_pretend_to_be_a_reference() -> None:
    """A payload that is spelled like a reference stays a payload: only the content type makes one."""
    form = Reference(**FIELDS).to_dict()
    assert decode(find_format("json").encode([[form], {}, {}]), "application/json", "utf-8", Caps())[0] == [form]


def test_a_key_names_its_times() -> None:
    """The day until which a payload is kept, and the second in which it was stored."""
    until = datetime(2027, 2, 27, 23, 59, tzinfo=UTC)
    key = new_key(until)
    assert kept_until(key) == datetime(2027, 2, 28, tzinfo=UTC).date()
    assert abs(datetime.now(UTC) - stored_at(key)) < timedelta(seconds=5)
    assert kept_until(new_key(datetime.max.replace(tzinfo=UTC))).year == 9000


def test_what_would_travel_decides() -> None:
    """A text that compresses well travels; one that does not is stored; without the setting everything travels."""
    packer = Packer(Caps())
    large = LargePayloads(1000, RetentionPolicy.DAYS_30, Caps(), lambda: open_store(None, False, dict))
    repeated, varied = (
        packer.encode(["ab" * 5000], None, None),
        packer.encode([hashlib.sha512(bytes([number])).hexdigest() for number in range(50)], None, None),
    )
    assert (large.is_above(repeated), large.is_above(varied)) == (False, True)
    off = LargePayloads(None, RetentionPolicy.DAYS_30, Caps(), lambda: open_store(None, False, dict))
    assert not off.is_above(varied)
    small = LargePayloads(
        10**9, RetentionPolicy.DAYS_30, Caps(max_body_bytes=2000), lambda: open_store(None, False, dict)
    )
    assert small.is_above(varied)
    with pytest.raises(ConfigurationError, match="set waooaw_reference_store"):
        large.share([Message(from_agent="a", to_agent="b", reference=Reference(**FIELDS))])


def test_a_stored_body_may_be_larger_than_one_that_travels() -> None:
    """Only the limit of a decompressed body applies to it."""
    packer, body = Packer(Caps(max_body_bytes=1000, max_expanded_bytes=100_000)), ["x" * 5000]
    assert packer.encode(body, None, "none", may_be_stored=True).packed.body
    with pytest.raises(EncodingFailed, match="waooaw_max_body_bytes = 1000: send a reference"):
        packer.encode(body, None, "none")
    with pytest.raises(EncodingFailed, match="waooaw_max_expanded_bytes"):
        packer.encode(["x" * 200_000], None, "none", may_be_stored=True)


def test_altered_bytes_and_those_of_something_else_are_refused() -> None:
    """The digest is compared before anything is decoded."""
    reference = Reference(**FIELDS)
    with pytest.raises(PayloadAltered, match="it has 2 bytes"):
        arguments_in(b"ab", reference, Caps())
    for text in (b"abc", b"[1]", b'{"a": 1}'):
        sum_ = hashlib.sha256(text).hexdigest()
        with pytest.raises(DecodingFailed):
            arguments_in(text, Reference(**FIELDS | {"sha256": sum_}), Caps())


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_files_are_stored_read_and_deleted(scheme: str, tmp_path: Path) -> None:
    """A store of files keeps exactly what it was given, until the day that the key names is over."""
    store = FileStore(f"{scheme}://{tmp_path}/payloads")
    kept, over = new_key(datetime.now(UTC)), f"2020-01-01/20191130T120000-{'1' * 32}"
    store.put([NewObject(kept, b"kept", ["1"]), NewObject(over, b"over", ["2"])])
    assert (store.get(kept), store.get(over)) == (b"kept", b"over")
    other = "2020-01-01/report"
    store.put([NewObject(other, b"not ours", [])])
    assert store.purge() == (1, 0, 4)
    assert store.get(other) == b"not ours"
    assert [key for key, _ in store.stored()] == [kept]
    for read in (store.get, lambda key: store.share(key, ["3"])):
        with pytest.raises(PayloadMissing, match="put it back"):
            read(over)
    store.delete([over, kept])
    assert list(store.stored()) == []


def test_an_unknown_file_system_is_a_wrong_setting() -> None:
    """The error names the setting and hides the password."""
    with pytest.raises(ConfigurationError, match="waooaw_reference_store = nonsense://"):
        FileStore("nonsense://user:secret@host/path")
