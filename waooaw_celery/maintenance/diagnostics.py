"""Checks of a running system, for `waooaw doctor`: each check yields findings.

To add a check, write a function from an application to findings, and add it to ``CHECKS``.
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
from waooaw_celery.messages.wording import ledger_name
from waooaw_celery.store.agents.worker_handlers import partial_handlers
from waooaw_celery.store.clock_reading import MAX_SKEW_SECONDS, WARN_SECONDS, difference, read, redis_time
from waooaw_celery.store.redis_refusals import explained

#: How to correct a wrong clock.
_REMEDY = "Check that NTP (chrony, systemd-timesyncd, w32time) runs on both computers"
#: How to correct processes with different ledgers.
_SAME_LEDGER = "Set the same waooaw_database_url (or WAOOAW_DATABASE_URL) for all processes"


class State(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARN = "warn"  #: it works, and needs attention
    FAIL = "fail"  #: something does not work


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A finding of a check.

    Attributes:
        name: what was checked, such as ``clock of this computer``.
        state: whether it is right.
        sentence: what was found, and what to do about it.
    """

    name: str
    state: State
    sentence: str


Check: TypeAlias = Callable[[AgentApp], Iterable[Finding]]


def examine(app: AgentApp, checks: Iterable[Check] | None = None) -> list[Finding]:
    """Run checks, and return their findings in order.

    A check that raises an error of this package becomes a FAIL with the error's message.

    Args:
        app: the application whose broker, store and ledger are checked.
        checks: the checks to run; None: all.

    Example:
        >>> [finding.name for finding in examine(app) if finding.state is State.FAIL]
        ['clock of planner@host-2']
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
    """Compare this computer's clock with the reference clock.

    Raises:
        StoreUnavailable: the reference clock does not answer.
    """
    name = "clock of this computer"
    reading = app.reference_clock.measure()
    if reading is None:
        yield Finding(
            name=name, state=State.OK, sentence="the ledger is on this computer, whose clock is the reference"
        )
        return
    yield _clock_finding(name, "this computer", reading.ahead, reading.error, reading.name)


def clock_of_the_broker(app: AgentApp) -> Iterator[Finding]:
    """Compare the broker's clock with the reference clock, if the broker can return its time.

    Raises:
        StoreUnavailable: the reference clock does not answer.
        BrokerUnavailable: the broker does not answer.
    """
    name = "clock of the broker"
    if app.driver != "redis":
        sentence = f"the broker {app.driver!r} has no clock that messages depend on"
        yield Finding(name=name, state=State.OK, sentence=sentence)
        return
    try:
        with app.connection_for_write() as connection, connection.channel() as channel:
            broker = read("the broker", _clock_source(channel))
    except (OperationalError, RedisError, OSError) as error:
        raise BrokerUnavailable(f"the broker does not answer: {explained(error)}") from error
    reference = app.reference_clock.measure()
    error_seconds = broker.error + (reference.error if reference is not None else 0.0)
    reference_name = reference.name if reference is not None else "this computer"
    ahead = (reference.ahead if reference is not None else 0.0) - broker.ahead
    yield _clock_finding(name, "the broker", ahead, error_seconds, reference_name)


def clocks_of_the_workers(app: AgentApp) -> Iterator[Finding]:
    """Return the clock difference that each living worker reported with its last heartbeat.

    Raises:
        StoreUnavailable: the agent registry does not answer.
    """
    clocks: dict[str, dict[str, Any] | None] = {}
    for record in app.registry.everywhere():
        for worker in record.workers:
            clocks[worker] = record.reports.get(worker, {}).get("clock") or clocks.get(worker)
    for worker, clock in sorted(clocks.items()):
        name = f"clock of {worker}"
        if clock is not None:
            yield _clock_finding(name, worker, clock["ahead"], clock["error"], clock["reference"])
        elif app.reference_clock.has_source:
            sentence = f"{worker} has not reported its clock yet: try again in a minute"
            yield Finding(name=name, state=State.WARN, sentence=sentence)
        else:
            yield Finding(name=name, state=State.OK, sentence=f"the clock of {worker} is the reference")


def handlers_of_the_workers(app: AgentApp) -> Iterator[Finding]:
    """Find the agents of which two versions run: some of their workers lack handlers that others have.

    Raises:
        StoreUnavailable: the agent registry does not answer.
    """
    for record in app.registry.all():
        partial = partial_handlers(record.worker_handlers)
        if not partial:
            continue
        owners = "; ".join(f"only {', '.join(workers)} has {name}" for name, workers in partial.items())
        sentence = (
            f"the workers of {record.name} have different handlers: {owners}. The others hand its messages back. "
            "Stop the workers of the old version when the new one runs"
        )
        yield Finding(name=f"handlers of {record.name}", state=State.WARN, sentence=sentence)


def ledgers_of_the_workers(app: AgentApp) -> Iterator[Finding]:
    """Compare the ledger that each living worker writes to with that of this process.

    Raises:
        StoreUnavailable: the agent registry does not answer.
    """
    own = app.ledger_id
    yield Finding(name="ledger", state=State.OK, sentence=f"this process writes to {ledger_name(own)}")
    records = app.registry.everywhere()
    ledgers = {worker: ledger for record in records for worker, ledger in record.ledgers.items()}
    for worker, ledger in sorted(ledgers.items()):
        sentence = f"{worker} writes to {ledger_name(ledger)}"
        if ledger != own:
            sentence += f", and this process to {ledger_name(own)}. {_SAME_LEDGER}"
        state = State.OK if ledger == own else State.WARN
        yield Finding(name=f"ledger of {worker}", state=state, sentence=sentence)
    refused = {worker: report.get("refused") for record in records for worker, report in record.reports.items()}
    for worker, queues in sorted(refused.items()):
        for queue, reason in (queues or {}).items():
            sentence = f"{worker} leaves messages in {queue}: {reason}"
            yield Finding(name=f"queue {queue}", state=State.FAIL, sentence=sentence)


#: The checks of ``waooaw doctor``, in the order in which they are shown.
CHECKS: list[Check] = [
    clock_of_this_computer,
    clock_of_the_broker,
    clocks_of_the_workers,
    handlers_of_the_workers,
    ledgers_of_the_workers,
]


def _clock_finding(name: str, owner: str, ahead: float, error: float, reference: str) -> Finding:
    sentence = f"the clock of {owner} is {difference(ahead)} that of {reference} (give or take {error:.3f} s)"
    certain = abs(ahead) - error
    if certain > MAX_SKEW_SECONDS:
        consequence = f"Nothing is purged while clocks disagree by more than {MAX_SKEW_SECONDS:.0f} s"
        return Finding(name=name, state=State.FAIL, sentence=f"{sentence}. {consequence}. {_REMEDY}")
    if certain > WARN_SECONDS:
        return Finding(name=name, state=State.WARN, sentence=f"{sentence}. {_REMEDY}")
    return Finding(name=name, state=State.OK, sentence=sentence)


def _clock_source(channel: Any) -> Callable[[], Any]:
    @contextmanager
    def source() -> Iterator[Callable[[], float]]:
        yield lambda: redis_time(channel.client.time())

    return source
