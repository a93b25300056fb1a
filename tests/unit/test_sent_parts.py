"""The parts of a stream, as the ledger records them."""

from __future__ import annotations

import hashlib

import pytest

from waooaw_celery.worker.outcomes.sent_parts import SentParts

#: As canonical JSON, each part and its line feed have ten bytes.
PARTS = [{"a": 100}, {"a": 200}, {"a": 300}]
DIGEST = hashlib.sha256(b'{"a":100}\n{"a":200}\n{"a":300}\n').hexdigest()


@pytest.mark.parametrize(("max_kept", "kept"), [(0, None), (29, None), (30, PARTS)])
def test_parts_are_kept_up_to_a_number_of_bytes(max_kept: int, kept: list[object] | None) -> None:
    """Their number and digest are always there; the parts are there as a whole or not at all."""
    sent = SentParts(max_kept)
    for part in PARTS:
        sent.add(part)
    expected = {"count": 3, "sha256": DIGEST}
    assert sent.to_payload() == (expected if kept is None else {**expected, "parts": kept})
