"""The account of all that was sent, and the invariants that it must keep: one check for every fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from faults.effects import Effect
from faults.stacks import End

#: Seconds within which a message is handled that is sent when a fault is over.
PROGRESS = 10.0
#: Seconds that a public call may take beyond its documented time.
GRACE_SECONDS = 0.5
#: Terminal events that say that nobody knows what became of a message.
LOSSES = frozenset({"lost"})


class Outcome(NamedTuple):
    """What a driver was told.

    Attributes:
        what: ``accepted``, ``refused``, ``unknown``, or ``broke`` for an error that no caller expects; ``raw`` for
            what was put into the queue by hand.
        reason: the class of the error.
        seconds: that the call took.
    """

    what: str
    reason: str
    seconds: float


@dataclass
class Account:
    """What became of all that was sent.

    Attributes:
        sent: calls of the driver.
        accepted: those of which it was told that they are sent.
        refused: those of which it was told that they are not.
        unknown: those of which it was told nothing certain.
        handled: messages that a handler brought to an end.
        dead: those that ended otherwise: failed, a dead letter.
        expired: those that were not begun in time, or cancelled.
        duplicates: those that were brought to an end more than once.
        lost: accepted, and none of these (I1).
        dishonest: refused, and handled all the same; or an error that no caller expects (I2).
        unresolved: of unknown outcome, and the audit does not know either (I2).
        unaudited: accepted, and the audit does not say once and truly what became of them; or known to the audit,
            and sent by nobody (I4).
        slowest: the longest call, in seconds (I5).
        probes: seconds from the end of a fault until the next message was handled (I6); infinite: never.
        recoveries: seconds from a worker's death until what it had begun was handled by another one.
        broken: what the fault itself found wrong.
    """

    sent: int = 0
    accepted: int = 0
    refused: int = 0
    unknown: int = 0
    handled: int = 0
    dead: int = 0
    expired: int = 0
    duplicates: int = 0
    lost: list[str] = field(default_factory=list)
    misreported: list[str] = field(default_factory=list)
    unresolved: list[str] = field(default_factory=list)
    audit_errors: list[str] = field(default_factory=list)
    slowest: float = 0.0
    probes: list[float] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def __iadd__(self, other: Account) -> Account:
        """Add another account, of other messages."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            setattr(self, name, max(mine, value) if name == "slowest" else mine + value)
        return self

    def violations(self, deadline: float, duplicates: int | None = 0) -> list[str]:
        """Return a sentence for each invariant that does not hold.

        Args:
            deadline: seconds that a call may take.
            duplicates: how many messages may have been handled more than once; None: any number.
        """
        found = list(self.broken)
        for what, ids in (
            ("I1: lost", self.lost),
            ("I2: refused, or broken off, and yet sent:", self.misreported),
            ("I2: unknown, and never resolved:", self.unresolved),
            ("I4: not audited as it was:", self.audit_errors),
        ):
            if ids:
                found.append(f"{what} {len(ids)}, such as {', '.join(ids[:3])}")
        if duplicates is not None and self.duplicates > duplicates:
            found.append(f"I3: {self.duplicates} were handled more than once, and {duplicates} may be")
        if self.slowest > deadline + GRACE_SECONDS:
            found.append(f"I5: a call took {self.slowest:.1f} s, and {deadline:g} s are promised")
        if self.probes and max(self.probes) > PROGRESS:
            found.append(f"I6: work went on after {max(self.probes):.1f} s, and not within {PROGRESS:g} s")
        return found


def verify(
    outcomes: Mapping[str, Outcome],
    effects: Sequence[Effect],
    ends: Mapping[str, Sequence[End]],
    rows: set[str],
    known: set[str],
) -> Account:
    """Compare what a driver was told with what handlers did and with what the audit says, once all is quiet.

    Args:
        outcomes: by message.
        effects: of the handlers.
        ends: terminal events of the audit, by message.
        rows: messages that the audit knows.
        known: further messages that somebody sent, earlier.
    """
    times: dict[str, int] = {}
    for effect in effects:
        if effect.what == "done":
            times[effect.id] = times.get(effect.id, 0) + 1
    account = Account(sent=len(outcomes), slowest=max((each.seconds for each in outcomes.values()), default=0.0))
    for id_, outcome in outcomes.items():
        said = [end.event for end in ends.get(id_, ())]
        handled, ended = id_ in times, [event for event in said if event not in LOSSES]
        account.handled += handled
        account.duplicates += times.get(id_, 0) > 1
        if not handled:
            account.dead += bool({"failed", "dead"} & set(said))
            account.expired += bool({"expired", "cancelled"} & set(said))
        truth = said == ["handled"] if handled else len(said) == 1 and said != ["handled"]
        match outcome.what:
            case "accepted":
                account.accepted += 1
                if not handled and (not ended or ended == ["handled"]):
                    account.lost.append(f"{id_} ({', '.join(said) or 'no end'})")
                if not truth:
                    account.audit_errors.append(f"{id_} ({'' if handled else 'not '}handled: {said})")
            case "refused":
                account.refused += 1
                if handled:
                    account.misreported.append(f"{id_} ({outcome.reason})")
            case "unknown":
                account.unknown += 1
                if not truth:
                    account.unresolved.append(f"{id_} ({'' if handled else 'not '}handled: {said})")
            case "broke":
                account.misreported.append(f"{id_} ({outcome.reason})")
    account.audit_errors += [f"{id_} (nobody sent it)" for id_ in sorted(rows - outcomes.keys() - known)]
    return account
