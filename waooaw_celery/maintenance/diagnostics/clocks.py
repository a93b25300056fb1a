"""The clocks: of this computer, of the broker and of each worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import BrokerUnavailable
from waooaw_celery.maintenance.diagnostics.finding import Finding, State
from waooaw_celery.store.clock_reading import MAX_SKEW_SECONDS, WARN_SECONDS, difference, read, redis_time
from waooaw_celery.store.redis_refusals import explained

#: How to correct a wrong clock.
_REMEDY = "Check that NTP (chrony, systemd-timesyncd, w32time) runs on both computers"


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
