"""What is wrong with a system, as far as one process can find out: a list of checks, each of which tells findings.

A new check is a function from an application to findings, added to ``CHECKS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import BrokerUnavailable, WaooawError
from waooaw_celery.store.clock_reading import MOST_SKEW, WARN_SECONDS, difference, read, redis_time

#: What to do about a wrong clock.
_CURE = "Check that NTP (chrony, systemd-timesyncd, w32time) runs on both computers"


class State(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"  #: it works, and somebody should see to it
    FAIL = "fail"  #: something does not work


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found.

    Attributes:
        name: what was looked at, such as ``clock of this computer``.
        state: how bad it is.
        sentence: what is the case, and what to do about it.
    """

    name: str
    state: State
    sentence: str


Check: TypeAlias = Callable[[AgentApp], Iterable[Finding]]


def examine(app: AgentApp, checks: Iterable[Check] | None = None) -> list[Finding]:
    """Return what the checks find, in their order.

    A check that raises an error of this package is a finding too: FAIL, with the error's sentence.

    Args:
        app: the application whose broker, store and ledger are looked at.
        checks: which; None: all.
    """
    findings: list[Finding] = []
    for check in CHECKS if checks is None else checks:
        try:
            findings += check(app)
        except WaooawError as error:
            name = check.__name__.replace("_", " ")
            findings.append(Finding(name=name, state=State.FAIL, sentence=str(error)))
    return findings


def clock_of_this_computer(app: AgentApp) -> Iterator[Finding]:
    """Compare this computer's clock with the reference.

    Raises:
        StoreUnavailable: the reference does not answer.
    """
    name = "clock of this computer"
    reading = app.reference_clock.measure()
    if reading is None:
        yield Finding(
            name=name, state=State.OK, sentence="the ledger is on this computer, whose clock is the reference"
        )
        return
    yield _of_difference(name, "this computer", reading.ahead, reading.error, reading.name)


def clock_of_the_broker(app: AgentApp) -> Iterator[Finding]:
    """Compare the broker's clock with the reference, where the broker tells its time.

    Raises:
        StoreUnavailable: the reference does not answer.
        BrokerUnavailable: the broker does not answer.
    """
    name = "clock of the broker"
    if app.driver != "redis":
        yield Finding(
            name=name,
            state=State.OK,
            sentence=f"a broker of the kind {app.driver!r} neither tells nor needs the time",
        )
        return
    try:
        with app.connection_for_write() as connection, connection.channel() as channel:
            broker = read("the broker", _asking(channel))
    except (OperationalError, RedisError, OSError) as error:
        raise BrokerUnavailable(f"the broker does not answer: {error}") from error
    reference = app.reference_clock.measure()
    give = broker.error + (reference.error if reference is not None else 0.0)
    named = reference.name if reference is not None else "this computer"
    ahead = (reference.ahead if reference is not None else 0.0) - broker.ahead
    yield _of_difference(name, "the broker", ahead, give, named)


def clocks_of_the_workers(app: AgentApp) -> Iterator[Finding]:
    """Tell what each living worker reported of its clock with its last heartbeat.

    Raises:
        StoreUnavailable: what keeps the agents does not answer.
    """
    seen: dict[str, dict[str, Any] | None] = {}
    for record in app.registry.all():
        for worker in record.workers:
            seen[worker] = record.reports.get(worker, {}).get("clock") or seen.get(worker)
    for worker, clock in sorted(seen.items()):
        name = f"clock of {worker}"
        if clock is not None:
            yield _of_difference(name, worker, clock["ahead"], clock["error"], clock["reference"])
        elif app.reference_clock.has_source:
            yield Finding(
                name=name,
                state=State.WARN,
                sentence=f"{worker} has not compared its clock so far: ask again in a minute",
            )
        else:
            yield Finding(name=name, state=State.OK, sentence=f"the clock of {worker} is the reference")


#: The checks of ``waooaw doctor``, in the order in which they are shown.
CHECKS: list[Check] = [clock_of_this_computer, clock_of_the_broker, clocks_of_the_workers]


def _of_difference(name: str, whose: str, ahead: float, error: float, reference: str) -> Finding:
    sentence = f"the clock of {whose} is {difference(ahead)} that of {reference} (give or take {error:.3f} s)"
    certain = abs(ahead) - error
    if certain > MOST_SKEW:
        cure = f"{sentence}. Nothing is purged while clocks disagree by more than {MOST_SKEW:.0f} s. {_CURE}"
        return Finding(name=name, state=State.FAIL, sentence=cure)
    if certain > WARN_SECONDS:
        return Finding(name=name, state=State.WARN, sentence=f"{sentence}. {_CURE}")
    return Finding(name=name, state=State.OK, sentence=sentence)


def _asking(channel: Any) -> Callable[[], Any]:
    @contextmanager
    def source() -> Iterator[Callable[[], float]]:
        yield lambda: redis_time(channel.client.time())

    return source
