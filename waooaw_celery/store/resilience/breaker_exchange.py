"""What a process knows of the circuit breakers of agents, and what it tells the store about them."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.store.resilience import breaker_rules as rules
from waooaw_celery.store.resilience.breaker_counts import UnsentCounts
from waooaw_celery.store.resilience.breaker_rules import BreakerRecord
from waooaw_celery.store.resilience.breaker_store import BreakerStore, Stored
from waooaw_celery.store.resilience.cached_read import CachedRead

logger = get_logger(__name__)


class BreakerExchange:
    """Keeps a copy of the stored breakers, at most about a second old, and reports failures at once.

    While the store does not answer, the process goes by what it has read last.

    Args:
        store: where the breakers are stored.
    """

    def __init__(self, store: BreakerStore) -> None:
        self._store, self._limits = store, store.limits
        self._offset = time.time() - time.monotonic()
        self._known: CachedRead[Mapping[str, BreakerRecord]] = CachedRead(
            self._exchange, {}, "the circuit breakers of agents", "waooaw-breakers"
        )
        self._unsent = UnsentCounts(self._limits.part_seconds)
        self._is_reporting = False
        self._begin_anew()

    def records(self) -> Mapping[str, BreakerRecord]:
        """Return the records by the names of the agents. It costs no round trip while it is called often."""
        return self._known.get()

    def now(self) -> float:
        """Return the store's time, in seconds since 1970, as far as this process knows it."""
        return time.monotonic() + self._offset

    def count(self, agent: str, *, failed: bool) -> None:
        """Count a request that has ended, and report a failure at once.

        Args:
            agent: the requested agent.
            failed: whether it failed.
        """
        self._unsent.add(agent, failed=failed)
        if failed and self._may_report():
            _run(self._report)

    def take_probe(self, agent: str, request: str, lease: float, known: BreakerRecord) -> Stored:
        """Ask the store for the place of the probe.

        Args:
            agent: the requested agent.
            request: id of the request.
            lease: seconds for which the place is kept.
            known: the record by which this process goes while the store is away.
        """
        if not self._known.is_away:
            try:
                return self.change("probe", agent, request=request, lease=lease)
            except StoreUnavailable as error:
                self._known.note_failure(error)
        self._check_process()
        now = self.now()
        with self._lock:
            return Stored(now, known, rules.take_probe(known, request, lease, now))

    def end_probe(self, agent: str, request: str, works: bool | None) -> None:
        """Tell the store how a probe has ended: see ``Breakers.end_probe``."""
        _run(lambda: self._end_probe(agent, request, works))

    def change(self, operation: str, agent: str, **given: Any) -> Stored:
        """Change a stored record, and use what the store has answered from now on.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        stored = self._store.change(operation, agent, **given)
        self._note(agent, stored)
        return stored

    def _end_probe(self, agent: str, request: str, works: bool | None) -> None:
        try:
            stored = self.change("probed", agent, request=request, works=works)
        except StoreUnavailable as error:  # this process goes by what it knows
            self._known.note_failure(error)
            known, now = self._known.last.get(agent, BreakerRecord()), self.now()
            was_probe = known.probe == request
            stored = Stored(now, rules.end_probe(known, request, works, self._limits, now), was_probe)
            self._note(agent, stored)
        if works is not None and stored.done:
            logger.warning(
                "the circuit breaker of %s %s",
                agent,
                "closes: its probe was answered" if works else "stays open: its probe failed",
                extra={"action": "breaker_closed" if works else "breaker_stays_open"},
            )

    def _exchange(self) -> Mapping[str, BreakerRecord]:
        """Report the counts of agents with failures, and read all records."""
        for agent in {*self._known.last, *self._unsent.failing()}:
            self._send(agent)
        now, records = self._store.read()
        self._offset = now - time.monotonic()
        return records

    def _may_report(self) -> bool:
        """Return whether the caller reports now. Who does so already reports what is counted later too."""
        self._check_process()
        with self._lock:
            if self._is_reporting or self._known.is_away:  # the next read reports it when the store is back
                return False
            self._is_reporting = True
            return True

    def _report(self) -> None:
        """Report the failures that were counted, until there are no more."""
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
        except StoreUnavailable as error:
            self._is_reporting = False
            self._known.note_failure(error)
        except BaseException:
            self._is_reporting = False
            raise

    def _send(self, agent: str) -> Stored | None:
        """Report what this process has counted for an agent, if there is something."""
        counted = self._unsent.take(agent)
        if not counted:
            return None
        try:
            stored = self._store.change("report", agent, counted=counted)
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

    def _note(self, agent: str, stored: Stored) -> None:
        self._offset = stored.now - time.monotonic()
        own = {} if stored.record is None else {agent: stored.record}
        self._check_process()
        with self._lock:
            others = {name: record for name, record in self._known.last.items() if name != agent}
            self._known.replace({**others, **own})

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Make the lock, also in a forked process: a thread of the parent may have held it."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._is_reporting = False


def _run(exchange: Callable[[], None]) -> None:
    """Run an exchange with the store here, or in a thread if this is a coroutine."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        exchange()
    else:
        threading.Thread(target=exchange, name="waooaw-breakers", daemon=True).start()
