"""Addresses by capability, and conditions on versions."""

from __future__ import annotations

import pytest

from waooaw_celery.agents import Capability, CapabilityAddress
from waooaw_celery.discovery.address import accepts, is_capability
from waooaw_celery.errors import InvalidMessage


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("capability:summarise", CapabilityAddress("summarise")),
        ("capability:summarise@>=2", CapabilityAddress("summarise", version=">=2")),
        ("capability:summarise@>=2,<3", CapabilityAddress("summarise", version=">=2,<3")),
        ("capability:ocr?tags=eu,gpu", CapabilityAddress("ocr", tags=("gpu", "eu"))),
        (
            "capability:ocr@2?tags=eu&policy=sticky&key=a%20b%26c",
            CapabilityAddress("ocr", version="2", tags=("eu",), policy="sticky", key="a b&c"),
        ),
    ],
)
def test_an_address_and_its_text_are_equal(text: str, address: CapabilityAddress) -> None:
    """The text of an address reads as the same address."""
    assert CapabilityAddress.of(text) == address
    assert CapabilityAddress.of(str(address)) == address
    assert CapabilityAddress.of(address) is address
    assert is_capability(text)
    assert is_capability(address)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("capability:", "name of a capability is invalid"),
        ("capability:Summarise", "name of a capability is invalid"),
        ("capability:a@", "no version after @"),
        ("capability:a@newest", "is no condition on a version"),
        ("capability:a@=>2", "is no condition on a version"),
        ("capability:a?tag=eu", "unknown option 'tag'"),
        ("capability:a?tags=E U", "must be 1 to 63"),
        ("capability:a?policy=sticky&key=" + "k" * 256, "1 to 255 characters"),
        ("capability:a?policy=least-loaded", "must be a name"),
    ],
)
def test_a_malformed_address_is_refused_with_what_to_write(text: str, problem: str) -> None:
    """The error names what is wrong."""
    with pytest.raises(InvalidMessage, match=problem):
        CapabilityAddress.of(text)


@pytest.mark.parametrize("to", ["worker-1", "capabilities", 5, None, ["capability:a"]])
def test_other_recipients_are_no_addresses(to: object) -> None:
    """Only a text with the prefix, and the object, are."""
    assert not is_capability(to)


@pytest.mark.parametrize(
    ("condition", "met", "not_met"),
    [
        (">=2", ("2", "2.0", "2.1", "3", "10"), ("1.9", "1.10")),
        ("2", ("2", "2.1", "2.10.3"), ("1", "3", "20")),
        ("2.1", ("2.1", "2.1.9"), ("2.10", "2.2")),
        (">=2,<3", ("2", "2.99"), ("3", "1")),
        ("==2.1", ("2.1", "2.1.0"), ("2.1.1",)),
        ("~=2.1", ("2.1", "2.9"), ("3.0", "2.0")),
        ("!=2", ("1", "3"), ("2", "2.0")),
    ],
)
def test_versions_are_compared_as_numbers(condition: str, met: tuple[str, ...], not_met: tuple[str, ...]) -> None:
    """2.10 is higher than 2.9, and 2 stands for every 2.x."""
    assert {version for version in (*met, *not_met) if accepts(condition, version)} == set(met)


def test_a_capability_without_a_version_meets_no_condition() -> None:
    """Without a condition, it is met by every version."""
    assert not Capability(name="a").meets(">=0")
    assert Capability(name="a").meets(None)
    assert Capability(name="a", version="1").meets(None)
