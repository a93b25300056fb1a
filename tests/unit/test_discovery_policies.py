"""The distributions of the policies, by chi-square, and what each policy promises."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate

import pytest

from waooaw_celery.agents import Capability, Policy
from waooaw_celery.discovery.policies import Chooser
from waooaw_celery.discovery.snapshot import Candidates
from waooaw_celery.errors import InvalidMessage

ROUNDS = 20_000
#: The chance that a correct policy fails a test: the seeds are fixed, so that it fails always or never.
ALPHA = 1e-4


def seeded(seed: int) -> random.Random:
    """Return a source of the same random numbers for each run."""
    return random.Random(seed)  # noqa: S311 - it keeps no secret


def no_load(names: Sequence[str]) -> list[int]:
    """Return that nothing waits."""
    return [0] * len(names)


def candidates(weights: Mapping[str, float]) -> Candidates:
    """Return candidates with these weights."""
    values = tuple(weights.values())
    return Candidates(
        tuple(weights), values, tuple(accumulate(values)), dict.fromkeys(weights, Capability(name="a")), {}
    )


def p_value(counts: Counter[str], shares: Mapping[str, float]) -> float:
    """Return the chance of a chi-square statistic as great as this one, by the Wilson-Hilferty approximation."""
    total, whole = counts.total(), sum(shares.values())
    statistic = sum(
        (counts[name] - total * share / whole) ** 2 / (total * share / whole) for name, share in shares.items()
    )
    freedom = len(shares) - 1
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


EQUAL = dict.fromkeys((f"agent-{number}" for number in range(10)), 1.0)
UNEQUAL = {"small": 1.0, "middle": 2.0, "large": 5.0, "half": 0.5}


def test_the_chi_square_test_finds_a_wrong_distribution() -> None:
    """A policy that gives one agent a twentieth too much fails it."""
    rng = seeded(1)
    names = [*EQUAL, "agent-0"]
    wrong = Counter(rng.choice(names) for _ in range(ROUNDS))
    assert p_value(wrong, EQUAL) < ALPHA
    right = Counter(rng.choice(list(EQUAL)) for _ in range(ROUNDS))
    assert p_value(right, EQUAL) > ALPHA


@pytest.mark.parametrize(
    ("policy", "weights", "shares"),
    [
        (Policy.RANDOM, EQUAL, EQUAL),
        (Policy.RANDOM, UNEQUAL, dict.fromkeys(UNEQUAL, 1.0)),
        (Policy.WEIGHTED, UNEQUAL, UNEQUAL),
        (Policy.WEIGHTED, EQUAL, EQUAL),
        (Policy.STICKY, EQUAL, EQUAL),
        (Policy.STICKY, UNEQUAL, UNEQUAL),
        (Policy.POWER_OF_TWO, EQUAL, EQUAL),
        (Policy.LEAST_LOADED, EQUAL, EQUAL),
    ],
)
def test_the_distribution_is_the_promised_one(
    policy: Policy, weights: Mapping[str, float], shares: Mapping[str, float]
) -> None:
    """For equal loads and many keys, a chi-square test finds no difference."""
    chooser = Chooser(no_load, seeded(7))
    found = candidates(weights)
    counts = Counter(chooser.choose(policy, found, "a", f"key-{number}") for number in range(ROUNDS))
    assert p_value(counts, shares) > ALPHA, counts


def test_round_robin_gives_each_agent_its_turn() -> None:
    """The turns of two addresses do not mix, and two processes begin elsewhere."""
    chooser, found = Chooser(no_load, seeded(3)), candidates(EQUAL)
    counts = Counter(
        chooser.choose(Policy.ROUND_ROBIN, found, turn, None) for _ in range(500) for turn in ("a", "b")
    )
    assert counts == dict.fromkeys(EQUAL, 100)
    first = [Chooser(no_load).choose(Policy.ROUND_ROBIN, found, "a", None) for _ in range(100)]
    assert len(set(first)) > 3


def test_least_loaded_and_power_of_two_prefer_the_less_loaded() -> None:
    """The first one always; the second one never takes the most loaded agent of all."""
    loads = {name: number for number, name in enumerate(EQUAL)}
    chooser, found = Chooser(lambda names: [loads[name] for name in names], seeded(5)), candidates(EQUAL)
    assert {chooser.choose(Policy.LEAST_LOADED, found, "a", None) for _ in range(100)} == {"agent-0"}
    counts = Counter(chooser.choose(Policy.POWER_OF_TWO, found, "a", None) for _ in range(ROUNDS))
    assert counts["agent-9"] == 0
    # Of the 45 pairs, the agent with n more loaded ones wins n.
    assert p_value(counts, {f"agent-{number}": 9 - number for number in range(9)}) > ALPHA


def test_power_of_two_balances_a_burst() -> None:
    """The longest queue is far shorter than with random choice (Mitzenmacher 2001)."""

    def longest(policy: Policy) -> int:
        loads: Counter[str] = Counter()
        chooser, found = Chooser(lambda names: [loads[name] for name in names], seeded(11)), candidates(EQUAL)
        for _ in range(1000):
            loads[chooser.choose(policy, found, "a", None)] += 1
        return max(loads.values())

    assert longest(Policy.POWER_OF_TWO) <= 103
    assert longest(Policy.RANDOM) >= 110


def test_sticky_moves_only_the_keys_of_an_agent_that_goes() -> None:
    """When it comes back, they move back; a lower weight gives keys away and takes none."""
    chooser = Chooser(no_load)

    def owners(weights: Mapping[str, float]) -> dict[str, str]:
        found = candidates(weights)
        return {f"k{n}": chooser.choose(Policy.STICKY, found, "a", f"k{n}") for n in range(2000)}

    before = owners(EQUAL)
    after = owners({name: 1.0 for name in EQUAL if name != "agent-4"})
    assert {key for key in before if before[key] != after[key]} == {
        key for key, owner in before.items() if owner == "agent-4"
    }
    lighter = owners({**EQUAL, "agent-4": 0.5})
    moved = {key for key in before if before[key] != lighter[key]}
    assert moved
    assert {before[key] for key in moved} == {"agent-4"}


def test_sticky_needs_a_key_and_other_policies_are_named() -> None:
    """The errors say what to write."""
    chooser = Chooser(no_load)
    with pytest.raises(InvalidMessage, match="needs a key"):
        chooser.choose(Policy.STICKY, candidates(EQUAL), "a", None)
    with pytest.raises(InvalidMessage, match="round_robin, least_loaded"):
        Policy.of("fastest")
