"""The account of all messages that were sent, and the invariants that hold after every fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from faults.effects import Effect
from faults.stacks import End

#: Seconds within which a message that is sent after a fault must be handled.
PROGRESS = 10.0
#: Seconds that a public call may exceed its documented deadline.
GRACE_SECONDS = 0.5
#: Final events of messages whose outcome is not known.
LOSSES = frozenset({"lost"})


class Outcome(NamedTuple):
    """The outcome of one call of the driver.

    Attributes:
        what: ``accepted``, ``refused``, ``unknown``, or ``broke`` for an undocumented error; ``raw`` for a message
            that was put into the queue directly.
        reason: the class of the error.
        seconds: how long the call took.
    """

    what: str
    reason: str
    seconds: float


@dataclass
class Account:
    """What became of all messages that were sent.

    Attributes:
        sent: calls of the driver.
        accepted: calls that returned.
        refused: calls that raised an error which means that the message was not sent.
        unknown: calls that raised an error which leaves that open.
        handled: messages whose handler returned.
        dead: messages that failed or became dead letters.
        expired: messages that expired or were cancelled.
        duplicates: messages whose handler returned more than once.
        lost: accepted messages that are none of these (I1).
        dishonest: refused but handled; or an undocumented error (I2).
        unresolved: unknown, and the audit has no final event either (I2).
        unaudited: accepted, but the audit does not have exactly one true final event; or known to the audit,
            and sent by nobody (I4).
        slowest: the longest call, in seconds (I5).
        probes: seconds from the end of a fault until a new message was handled (I6); infinite: never.
        recoveries: seconds from a worker's death until another worker handled the messages that it had begun.
        broken: other violations that the fault found.
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
        """Add the account of other messages."""
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
            ("I2: refused but handled, or an undocumented error:", self.misreported),
            ("I2: unknown and never resolved:", self.unresolved),
            ("I4: wrong in the audit:", self.audit_errors),
        ):
            if ids:
                found.append(f"{what} {len(ids)}, such as {', '.join(ids[:3])}")
        if duplicates is not None and self.duplicates > duplicates:
            found.append(f"I3: {self.duplicates} were handled more than once; {duplicates} are allowed")
        if self.slowest > deadline + GRACE_SECONDS:
            found.append(f"I5: a call took {self.slowest:.1f} s; {deadline:g} s are promised")
        if self.probes and max(self.probes) > PROGRESS:
            found.append(f"I6: work resumed after {max(self.probes):.1f} s, not within {PROGRESS:g} s")
        return found


def verify(
    outcomes: Mapping[str, Outcome],
    effects: Sequence[Effect],
    ends: Mapping[str, Sequence[End]],
    rows: set[str],
    known: set[str],
) -> Account:
    """Compare the driver's outcomes with the handlers' effects and with the audit, when all messages have ended.

    Args:
        outcomes: the outcome of each message id.
        effects: what the handlers recorded.
        ends: the final events of the audit, by message id.
        rows: ids of all messages in the audit.
        known: ids of messages of earlier accounts.
    """
    times: dict[str, int] = {}
    for effect in effects:
        if effect.what == "done":
            times[effect.id] = times.get(effect.id, 0) + 1
    account = Account(sent=len(outcomes), slowest=max((each.seconds for each in outcomes.values()), default=0.0))
    for id_, outcome in outcomes.items():
        events = [end.event for end in ends.get(id_, ())]
        handled, ended = id_ in times, [event for event in events if event not in LOSSES]
        account.handled += handled
        account.duplicates += times.get(id_, 0) > 1
        if not handled:
            account.dead += bool({"failed", "dead"} & set(events))
            account.expired += bool({"expired", "cancelled"} & set(events))
        is_true = events == ["handled"] if handled else len(events) == 1 and events != ["handled"]
        match outcome.what:
            case "accepted":
                account.accepted += 1
                if not handled and (not ended or ended == ["handled"]):
                    account.lost.append(f"{id_} ({', '.join(events) or 'no final event'})")
                if not is_true:
                    account.audit_errors.append(f"{id_} ({'' if handled else 'not '}handled: {events})")
            case "refused":
                account.refused += 1
                if handled:
                    account.misreported.append(f"{id_} ({outcome.reason})")
            case "unknown":
                account.unknown += 1
                if not is_true:
                    account.unresolved.append(f"{id_} ({'' if handled else 'not '}handled: {events})")
            case "broke":
                account.misreported.append(f"{id_} ({outcome.reason})")
    account.audit_errors += [f"{id_} (nobody sent it)" for id_ in sorted(rows - outcomes.keys() - known)]
    return account
