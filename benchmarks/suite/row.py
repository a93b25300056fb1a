"""What is measured: rows, each a comparison of two subjects, in groups that share their subjects."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of a subject.

    Attributes:
        value: in the unit of its row.
        cpu: microseconds of processor time for each message, in the processes that the subject has beside the
            servers; None: not measured. On a shared computer it varies less than a rate.
    """

    value: float
    cpu: float | None = None


#: Measures a subject once.
Subject = Callable[[], Sample]


@dataclass(frozen=True, slots=True)
class Row:
    """A comparison of two subjects of a group.

    Attributes:
        name: what is done.
        ours: the subject of this package.
        base: the subject that it is compared with.
        target: what ours / base should be at least; None: no target.
        unit: of the samples.
        at_most: whether the target is the most that ours / base should be: for times, not for rates.
        others: subjects that are listed beside the two.
        limit: what ours should be at most, in its unit, where no other subject does the same work; None: no limit.
    """

    name: str
    ours: str
    base: str
    target: float | None = None
    unit: str = "per second"
    at_most: bool = False
    others: Sequence[str] = ()
    limit: float | None = None


@dataclass(frozen=True)
class Group:
    """Subjects that take turns in one round, and the rows that compare them."""

    title: str
    subjects: Mapping[str, Subject]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Context:
    """What a group needs.

    Attributes:
        redis_url: the broker.
        database_url: PostgreSQL with the ledger's tables.
        amqp_url: RabbitMQ; None: none answers.
        peers: subjects of other projects.
        folder: for logs and spools.
        seconds: how long one sample of a rate takes.
        messages: how many messages a worker handles in one sample.
        growth: how many messages the long queue and the full ledger have.
        stack: closes what a group opens.
    """

    redis_url: str
    database_url: str
    amqp_url: str | None
    peers: PeerSubjects
    folder: Path
    seconds: float
    messages: int
    growth: int
    stack: ExitStack

    def rate(self, work: Callable[[], int]) -> Subject:
        """Return a subject that repeats some work, which returns how many messages it was.

        The work runs once here, so that no sample includes its first connection.
        """
        work()

        def sample() -> Sample:
            began, processor, done = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - began < self.seconds:
                done += work()
            took = time.perf_counter() - began
            return Sample(done / took, (time.process_time() - processor) / done * 1e6)

        return sample


class PeerSubjects(Protocol):
    """Subjects of other projects, which run in an environment of their own."""

    def rates(self, work: str, **arguments: int) -> Mapping[str, Subject]:
        """Return subjects that do some work, by the name of their project: those that are installed."""


@dataclass
class Result:
    """What was found for a row.

    Attributes:
        row: the row.
        samples: all samples of its subjects, one for each round.
    """

    row: Row
    samples: Mapping[str, Sequence[Sample]] = field(default_factory=dict)

    def median(self, subject: str) -> float:
        """Return the median of a subject's values."""
        return statistics.median(sample.value for sample in self.samples[subject])

    def cpu(self, subject: str) -> float | None:
        """Return the median of a subject's processor times; None: they were not measured."""
        found = [sample.cpu for sample in self.samples[subject] if sample.cpu is not None]
        return statistics.median(found) if found else None

    def ratios(self, subject: str) -> list[float]:
        """Return subject / base of each round, from low to high."""
        pairs = zip(self.samples[subject], self.samples[self.row.base], strict=True)
        return sorted(one.value / base.value for one, base in pairs)

    @property
    def ratio(self) -> float:
        """The median of ours / base."""
        return statistics.median(self.ratios(self.row.ours))

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None: there is none."""
        if self.row.limit is not None:
            return self.median(self.row.ours) <= self.row.limit
        if self.row.target is None:
            return None
        return self.ratio <= self.row.target if self.row.at_most else self.ratio >= self.row.target


#: Makes a group. What it opens is closed with the context's stack.
MakeGroup = Callable[[Context], Group]
