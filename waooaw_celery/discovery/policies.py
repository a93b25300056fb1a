"""The policies by which one of several agents is chosen."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from enum import StrEnum
from hashlib import blake2b
from itertools import count
from typing import Protocol

from waooaw_celery.discovery.snapshot import Candidates
from waooaw_celery.errors import InvalidMessage

#: Addresses whose turn the policy ``round_robin`` remembers, and keys whose agent ``sticky`` does.
MAX_REMEMBERED = 10_000


class Policy(StrEnum):
    """How one of several agents is chosen.

    ROUND_ROBIN: one after the other. LEAST_LOADED: the one with the fewest waiting and running messages. WEIGHTED:
    at random, in proportion to the weights. RANDOM: at random. POWER_OF_TWO: the less loaded of two that are drawn
    at random. STICKY: the same one for each key of the address, as long as it is available (rendezvous hashing,
    with weights).
    """

    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"
    WEIGHTED = "weighted"
    RANDOM = "random"
    POWER_OF_TWO = "power_of_two"
    STICKY = "sticky"

    @classmethod
    def of(cls, name: str) -> Policy:
        """Return the policy of a name.

        Raises:
            InvalidMessage: there is none; the error lists them.
        """
        try:
            return cls(name)
        except ValueError:
            raise InvalidMessage(f"there is no policy {name!r:.80}: use one of {', '.join(cls)}") from None


#: The policies that compare how loaded agents are.
COMPARING = frozenset({Policy.LEAST_LOADED, Policy.POWER_OF_TWO})


class Loads(Protocol):
    """Returns how many messages wait for each of some agents and run there."""

    def __call__(self, names: Sequence[str]) -> list[int]: ...


class Chooser:
    """Chooses one of several agents.

    Args:
        loads: returns how many messages wait for each of some agents and run there.
        rng: the source of random numbers.
    """

    def __init__(self, loads: Loads, rng: random.Random | None = None) -> None:
        self._loads, self._random = loads, rng or random.Random()  # noqa: S311 - it keeps no secret
        self._turns: dict[object, count[int]] = {}
        self._owners: dict[str, tuple[tuple[str, ...], tuple[float, ...], str]] = {}
        self._choices: dict[Policy, Callable[[Candidates, object, str | None], str]] = {
            Policy.ROUND_ROBIN: self._round_robin,
            Policy.LEAST_LOADED: self._least_loaded,
            Policy.WEIGHTED: self._weighted,
            Policy.RANDOM: self._any,
            Policy.POWER_OF_TWO: self._power_of_two,
            Policy.STICKY: self._sticky,
        }

    def choose(self, policy: Policy, candidates: Candidates, turn_of: object, key: str | None) -> str:
        """Return the name of the chosen agent.

        Args:
            policy: the policy.
            candidates: the agents, at least one.
            turn_of: what ``ROUND_ROBIN`` counts turns for: the address.
            key: what ``STICKY`` keeps with one agent.

        Raises:
            InvalidMessage: the policy is STICKY, and there is no key.
        """
        if len(candidates.names) == 1 and policy is not Policy.STICKY:
            return candidates.names[0]
        return self._choices[policy](candidates, turn_of, key)

    def _round_robin(self, candidates: Candidates, turn_of: object, key: str | None) -> str:
        turns = self._turns.get(turn_of)
        if turns is None:
            if len(self._turns) >= MAX_REMEMBERED:
                self._turns.clear()
            # Each process begins elsewhere, so that many short ones do not all choose the first agent.
            turns = self._turns.setdefault(turn_of, count(self._random.randrange(len(candidates.names))))
        return candidates.names[next(turns) % len(candidates.names)]

    def _least_loaded(self, candidates: Candidates, turn_of: object, key: str | None) -> str:
        loads = self._loads(candidates.names)
        least = min(loads)
        first, times = loads.index(least), loads.count(least)
        # Of equal ones any: the first would get the whole load of all processes.
        for _ in range(int(self._random.random() * times)):
            first = loads.index(least, first + 1)
        return candidates.names[first]

    def _weighted(self, candidates: Candidates, turn_of: object, key: str | None) -> str:
        return self._random.choices(candidates.names, cum_weights=candidates.cumulative)[0]

    def _any(self, candidates: Candidates, turn_of: object, key: str | None) -> str:
        return candidates.names[int(self._random.random() * len(candidates.names))]

    def _power_of_two(self, candidates: Candidates, turn_of: object, key: str | None) -> str:
        names, rng = candidates.names, self._random.random
        first, second = int(rng() * len(names)), int(rng() * (len(names) - 1))
        pair = names[first], names[second + (second >= first)]
        loads = self._loads(pair)
        return pair[loads[1] < loads[0]]

    def _sticky(self, candidates: Candidates, turn_of: object, key: str | None) -> str:
        if key is None:
            raise InvalidMessage(
                "the policy sticky needs a key, such as the id of a conversation: "
                "capability:summarise?policy=sticky&key=conversation-7"
            )
        known = self._owners.get(key)
        if known is not None and known[0] == candidates.names and known[1] == candidates.weights:
            return known[2]
        scores = [_score(key, name, w) for name, w in zip(candidates.names, candidates.weights, strict=True)]
        owner = candidates.names[scores.index(max(scores))]
        if len(self._owners) >= MAX_REMEMBERED:
            self._owners.clear()
        self._owners[key] = candidates.names, candidates.weights, owner
        return owner


def _score(key: str, name: str, weight: float) -> float:
    """Return the score of an agent for a key: the greatest wins, as often as the agent's weight says.

    When an agent comes or goes, only the keys that it wins move (rendezvous hashing, Thaler and Ravishankar 1998;
    with weights as in the Internet draft ``draft-ietf-bess-weighted-hrw``).
    """
    digest = blake2b(f"{key}\0{name}".encode(), digest_size=8).digest()
    share = (int.from_bytes(digest) + 1) / (2**64 + 1)  # greater than 0, less than 1
    return weight / -math.log(share)
