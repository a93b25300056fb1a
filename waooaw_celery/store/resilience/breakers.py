"""The circuit breakers of agents, shared by all processes: whether requests to an agent are let through.

The pattern is Michael Nygard's (*Release It!*, 2007). A breaker is closed while requests are answered. When too
many fail, it opens, and all processes refuse requests to the agent at once. After a pause, one process may send one
request, the probe, whose outcome closes the breaker or opens it again.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from waooaw_celery.errors import CircuitOpen, ConfigurationError, StoreUnavailable
from waooaw_celery.log.loggers import get_logger
from waooaw_celery.messages.json_form import JsonForm
from waooaw_celery.messages.validation import check_agent_name
from waooaw_celery.store.resilience import breaker_rules as rules
from waooaw_celery.store.resilience.breaker_counts import UnsentCounts
from waooaw_celery.store.resilience.breaker_rules import BreakerLimits, BreakerRecord, BreakerState
from waooaw_celery.store.resilience.cached_read import CachedRead

logger = get_logger(__name__)

#: Seconds that a probe's place is kept after the timeout of its request, and the bounds of the whole.
_GRACE_SECONDS, _LEAST_LEASE, _LONGEST_LEASE = 1.0, 2.0, 60.0
#: Why an agent gets no request to a capability.
_REASON = "its circuit breaker is open"


class Stored(NamedTuple):
    """What the store answers to an operation on the breaker of an agent.

    Attributes:
        now: the store's time, in seconds since 1970.
        record: the record after it; None: the breaker is closed, and nothing has failed.
        done: whether the operation had an effect.
    """

    now: float
    record: BreakerRecord | None
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker(JsonForm):
    """The circuit breaker of an agent, as it is stored.

    Attributes:
        agent: the requested agent.
        state: ``closed``, ``open`` or ``half open``.
        failures: failed requests within the window, while it is closed.
        requests: failed and answered requests within the window, as far as they were reported.
        since: since when it is open, aware UTC; None: it is closed.
        retry_at: when a probe may be sent, aware UTC, or None.
        probing: whether a probe is on its way.
        by: who opened it by hand, or None.
        reason: why, or None.
        until: when it closes by itself after it was opened by hand, aware UTC; None: not by itself.
    """

    agent: str
    state: str
    failures: int
    requests: int
    since: datetime | None
    retry_at: datetime | None
    probing: bool
    by: str | None
    reason: str | None
    until: datetime | None


class Breakers(ABC):
    """The circuit breakers of all agents.

    Args:
        limits: when a breaker opens, and for how long. With ``failures`` 0, nothing is counted or refused.

    Example:
        >>> app.breakers.open_by_hand("writer", by="ada", reason="its model is down", seconds=600)
        >>> app.breakers.close_by_hand("writer")
        True
    """

    def __init__(self, limits: BreakerLimits) -> None:
        self.limits = limits
        self._offset = time.time() - time.monotonic()
        self._known: CachedRead[Mapping[str, BreakerRecord]] = CachedRead(
            self._exchange, {}, "the circuit breakers of agents", "waooaw-breakers"
        )
        self._unsent = UnsentCounts(limits.part_seconds)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._is_reporting = False

    # --- requests

    def refusing(self) -> Mapping[str, str]:
        """Return the agents whose breakers let no request through now, each with the reason.

        It costs no round trip. An agent whose breaker waits for a probe is not among them.
        """
        if not self.limits.failures or not (known := self._known.get()):
            return {}
        now = self._now()
        return {
            agent: _REASON
            for agent, record in known.items()
            if record.state(now) is BreakerState.OPEN or (record.opened_at is not None and record.has_probe(now))
        }

    def admit(self, agent: str, request: str, timeout: float) -> bool:
        """Let a request through, or refuse it.

        It costs no round trip, except to take the place of the probe.

        Args:
            agent: the requested agent.
            request: id of the request.
            timeout: seconds for which its caller waits. The probe's place is kept a second longer, and for at most
                a minute.

        Returns:
            Whether the request is the probe: then ``end_probe`` must follow.

        Raises:
            CircuitOpen: the breaker is open, or another request is the probe.
        """
        if not self.limits.failures or (record := self._known.get().get(agent)) is None:
            return False
        now = self._now()
        state = record.state(now)
        if state is BreakerState.CLOSED:
            return False
        if state is BreakerState.HALF_OPEN and not record.has_probe(now):
            lease = min(max(timeout + _GRACE_SECONDS, _LEAST_LEASE), _LONGEST_LEASE)
            stored = self._take_probe(agent, request, lease, record)
            if stored.done:
                return True
            if stored.record is None or stored.record.opened_at is None:  # it was closed meanwhile
                return False
            record, now = stored.record, stored.now
        raise CircuitOpen(agent, record.retry_after(now), record.by, record.reason)

    def succeeded(self, agent: str) -> None:
        """Count an answered request. The store is told with the next failure, or in a second if it knows of one.

        Args:
            agent: the requested agent.
        """
        if self.limits.failures:
            self._unsent.add(agent, failed=False)

    def failed(self, agent: str) -> None:
        """Count a failed request, and tell the store at once. In a coroutine, a thread does it.

        Args:
            agent: the requested agent.
        """
        if self.limits.failures:
            self._unsent.add(agent, failed=True)
            self._run(self._report)

    def end_probe(self, agent: str, request: str, works: bool | None) -> None:
        """Close the breaker by the outcome of its probe, or open it again. In a coroutine, a thread does it.

        Args:
            agent: the requested agent.
            request: id of the probe.
            works: whether the agent works; None: it is not known, and the place of the probe is free again.
        """
        self._run(lambda: self._end_probe(agent, request, works))

    def note_reply(self, agent: str, request: str, works: bool | None) -> None:
        """Note that a request was answered by a message, which matters if it was the probe.

        Args:
            agent: the agent that replied.
            request: id of the request.
            works: whether the agent works; None: the answer does not show it.
        """
        record = self._known.get().get(agent) if self.limits.failures else None
        if record is not None and record.probe == request:
            self.end_probe(agent, request, works)

    # --- operators

    def states(self) -> list[Breaker]:
        """Return the breakers that are open or count failures, by the names of the agents.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        now, records = self._read()
        return [_described(agent, record, now) for agent, record in sorted(records.items())]

    def open_by_hand(
        self, agent: str, *, by: str, reason: str | None = None, seconds: float | None = None
    ) -> None:
        """Refuse every request to an agent, in all processes within about a second. No probe is sent.

        Args:
            agent: the requested agent.
            by: who opens it, for the error that callers get.
            reason: why, for the same error.
            seconds: after how long it closes by itself; None: only ``close_by_hand`` closes it.

        Raises:
            InvalidMessage: the name is invalid.
            ConfigurationError: the seconds are no positive number, or there are no circuit breakers.
            StoreUnavailable: the store does not answer.
        """
        check_agent_name(agent)
        if not self.limits.failures:
            raise ConfigurationError("there are no circuit breakers: waooaw_breaker_failures is 0")
        if seconds is not None and (
            isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 3.2e9
        ):
            raise ConfigurationError(f"seconds must be a positive number, not {seconds!r:.80}")
        self._note(agent, self._change("open", agent, by=by, reason=reason, seconds=seconds))

    def close_by_hand(self, agent: str) -> bool:
        """Close the breaker of an agent, in all processes within about a second, and forget what it has counted.

        Returns:
            Whether it was open.

        Raises:
            InvalidMessage: the name is invalid.
            StoreUnavailable: the store does not answer.
        """
        stored = self._change("close", check_agent_name(agent))
        self._note(agent, stored)
        return stored.done

    # --- exchange with the store

    def _exchange(self) -> Mapping[str, BreakerRecord]:
        """Report the counts of agents with failures, and read all records."""
        for agent in {*self._known.last, *self._unsent.failing()}:
            self._send(agent)
        now, records = self._read()
        self._offset = now - time.monotonic()
        return records

    def _report(self) -> None:
        """Report the failures that were counted; one thread of the process does it for all."""
        self._check_process()
        with self._lock:
            if self._is_reporting or self._known.is_away:  # the next read reports them when the store is back
                return
            self._is_reporting = True
        try:
            while True:
                with self._lock:
                    agents = self._unsent.failing()
                    if not agents:
                        self._is_reporting = False
                        return
                for agent in agents:
                    if (stored := self._send(agent)) is not None:
                        self._note(agent, stored)
        except BaseException as error:
            self._is_reporting = False
            if not isinstance(error, StoreUnavailable):
                raise
            self._known.note_failure(error)

    def _send(self, agent: str) -> Stored | None:
        """Report what this process has counted for an agent, if there is something."""
        counted = self._unsent.take(agent)
        if not counted:
            return None
        try:
            stored = self._change("report", agent, counted=counted)
        except StoreUnavailable:
            self._unsent.give_back(agent, counted)
            raise
        if stored.done:
            logger.warning(
                "the circuit breaker of %s opens: too many of the last requests to it have failed",
                agent,
                extra={"action": "breaker_opened"},
            )
        return stored

    def _take_probe(self, agent: str, request: str, lease: float, known: BreakerRecord) -> Stored:
        """Ask the store for the place of the probe; while it is away, this process goes by what it knows."""
        if not self._known.is_away:
            try:
                stored = self._change("probe", agent, request=request, lease=lease)
            except StoreUnavailable as error:
                self._known.note_failure(error)
            else:
                self._note(agent, stored)
                return stored
        self._check_process()
        now = self._now()
        with self._lock:
            return Stored(now, known, rules.take_probe(known, request, lease, now))

    def _end_probe(self, agent: str, request: str, works: bool | None) -> None:
        try:
            stored = self._change("probed", agent, request=request, works=works)
        except StoreUnavailable as error:  # this process goes by what it knows
            self._known.note_failure(error)
            known, now = self._known.last.get(agent, BreakerRecord()), self._now()
            stored = Stored(now, rules.end_probe(known, request, works, self.limits, now), known.probe == request)
        self._note(agent, stored)
        if works is not None and stored.done:
            logger.warning(
                "the circuit breaker of %s %s: its probe was %s",
                agent,
                "closes" if works else "stays open",
                "answered" if works else "not answered",
                extra={"action": "breaker_closed" if works else "breaker_stays_open"},
            )

    def _note(self, agent: str, stored: Stored) -> None:
        """Use what the store has answered from now on."""
        self._offset = stored.now - time.monotonic()

        def change(known: Mapping[str, BreakerRecord]) -> Mapping[str, BreakerRecord]:
            changed = dict(known)
            changed.pop(agent, None)
            if stored.record is not None:
                changed[agent] = stored.record
            return changed

        self._known.replace(change)

    def _now(self) -> float:
        """Return the store's time, as far as this process knows it."""
        return time.monotonic() + self._offset

    def _run(self, exchange: Callable[[], None]) -> None:
        """Run an exchange with the store here, or in a thread if this is a coroutine."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            exchange()
        else:
            threading.Thread(target=exchange, name="waooaw-breakers", daemon=True).start()

    def _check_process(self) -> None:
        """Make the lock anew in a forked process: another thread may have held it at the fork."""
        if self._pid != os.getpid():
            self._pid, self._lock, self._is_reporting = os.getpid(), threading.Lock(), False

    @abstractmethod
    def _read(self) -> tuple[float, Mapping[str, BreakerRecord]]:
        """Return the store's time and all records."""

    @abstractmethod
    def _change(self, operation: str, agent: str, **given: Any) -> Stored:
        """Change the record of an agent in one step, as ``lua/breaker.lua`` describes."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections of this process."""


def _described(agent: str, record: BreakerRecord, now: float) -> Breaker:
    state = record.state(now)
    is_open = state is not BreakerState.CLOSED
    return Breaker(
        agent=agent,
        state=state.value,
        failures=record.failures(),
        requests=record.failures() + record.successes(),
        since=_time(record.opened_at) if is_open else None,
        retry_at=_time(record.retry_at) if is_open else None,
        probing=is_open and record.has_probe(now),
        by=record.by if is_open else None,
        reason=record.reason if is_open else None,
        until=_time(record.until) if is_open else None,
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
