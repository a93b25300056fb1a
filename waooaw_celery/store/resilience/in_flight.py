"""How many requests of one agent to another are open at once: the bulkhead (Nygard, *Release It!*) between them.

Each open request has an entry that carries the end of a lease. The process that waits for the answer renews the
leases of all its requests in one thread. So the entries of a killed process no longer count after a lease.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from waooaw_celery.errors import StoreUnavailable, TooManyInFlight
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Seconds after which an entry that is not renewed no longer counts, and seconds between two renewals.
LEASE_SECONDS, RENEW_SECONDS = 15.0, 4.0
#: Seconds for which ended requests are collected before the store is told of them together.
COLLECT_SECONDS = 0.005
#: Seconds for which a store that did not answer is not asked again.
FAILURE_SECONDS = 5.0
#: What the error suggests as long as no request to the agent has ended, and the least, in seconds.
_FIRST_WAIT, _LEAST_WAIT = 1.0, 0.01
#: How much the newest duration counts in the mean.
_NEWEST_SHARE = 0.2
#: The limit of agents that are not named.
_OTHERS = "*"


class Pair(NamedTuple):
    """Two agents: the one that requests, and the one that is requested."""

    caller: str
    target: str


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an open request.

    Attributes:
        pair: the two agents.
        request: id of the request.
        since: when it was taken, by the monotonic clock.
    """

    pair: Pair
    request: str
    since: float


class InFlight(ABC):
    """Counts the open requests of each agent to each other, over all processes.

    Args:
        limits: how many requests of one agent to another may be open, by the requested agent; ``*`` stands for
            every other one.
    """

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits = limits
        self._away_until = 0.0
        self._is_away = False
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Forget everything, also in a forked process: its parent waits for the answers, and renews the leases."""
        self._pid = os.getpid()
        self._lock = threading.Lock()  # a thread of the parent may have held it
        self._woken = threading.Event()
        self._open: dict[Pair, set[str]] = {}
        #: Requests that have ended and whose entries are still stored.
        self._ended: dict[Pair, list[str]] = {}
        self._seconds: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def enter(self, caller: str, target: str, request: str) -> Place | None:
        """Take a place for a request, which costs one round trip if the agent has a limit, and else nothing.

        While the store does not answer, every request is let through.

        Args:
            caller: the agent that requests.
            target: the requested agent.
            request: id of the request.

        Returns:
            The place, for ``leave``; None: there is no limit, or it cannot be checked.

        Raises:
            TooManyInFlight: no place is free.
        """
        if not self._limits:
            return None
        limit = self._limits.get(target) or self._limits.get(_OTHERS)
        if limit is None or time.monotonic() < self._away_until:
            return None
        if self._pid != os.getpid():
            self._begin_anew()
        pair = Pair(caller, target)
        with self._lock:
            ended = self._ended.pop(pair, [])
        try:
            has_entered = self._enter(pair, request, limit, ended)
        except StoreUnavailable as error:
            with self._lock:
                self._ended.setdefault(pair, []).extend(ended)
            self._note_failure(error)
            return None
        self._is_away = False
        if not has_entered:
            mean = self._seconds.get(target)
            wait = _FIRST_WAIT if mean is None else max(mean / limit, _LEAST_WAIT)
            raise TooManyInFlight(target, caller, limit, wait)
        with self._lock:
            self._open.setdefault(pair, set()).add(request)
            self._ensure_thread()
        return Place(pair, request, time.monotonic())

    def leave(self, place: Place) -> None:
        """Free a place. It costs no round trip here: a thread tells the store, or the next ``enter`` does.

        Args:
            place: the place, as ``enter`` returned it.
        """
        if self._pid != os.getpid():
            return  # it is a place of the parent
        seconds, target = time.monotonic() - place.since, place.pair.target
        with self._lock:
            requests = self._open.get(place.pair, set())
            if place.request not in requests:
                return
            requests.discard(place.request)
            if not requests:
                del self._open[place.pair]
            self._ended.setdefault(place.pair, []).append(place.request)
            mean = self._seconds.get(target, seconds)
            self._seconds[target] = mean + _NEWEST_SHARE * (seconds - mean)
            self._ensure_thread()
        self._woken.set()

    def counts(self) -> dict[Pair, int]:
        """Return the open requests by their two agents, as they are stored now.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        return self._counts()

    def close(self) -> None:
        """Free the places of requests that have ended, and close the connections of this process."""
        self._closed.set()
        self._woken.set()
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(timeout=FAILURE_SECONDS)
        self._close()

    def _ensure_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._keep, name="waooaw-in-flight", daemon=True)
            self._thread.start()

    def _keep(self) -> None:
        """Renew the leases of open requests, and free the places of others, as long as there are any."""
        renew_at = time.monotonic() + RENEW_SECONDS
        while True:
            if self._woken.wait(max(renew_at - time.monotonic(), 0.0)):
                self._closed.wait(COLLECT_SECONDS)
            self._woken.clear()
            with self._lock:
                ended, self._ended = self._ended, {}
                is_due = time.monotonic() >= renew_at
                renewed = {pair: sorted(requests) for pair, requests in self._open.items()} if is_due else {}
                if not (ended or self._open) or (self._closed.is_set() and not ended):
                    self._thread = None
                    return
            if is_due:
                renew_at = time.monotonic() + RENEW_SECONDS
            try:
                if ended:
                    self._leave(ended)
                if renewed:
                    self._renew(renewed)
                self._is_away = False
            except StoreUnavailable as error:  # the entries end with their leases
                self._note_failure(error)

    def _note_failure(self, error: StoreUnavailable) -> None:
        self._away_until = time.monotonic() + FAILURE_SECONDS
        if not self._is_away:
            logger.warning(
                "the open requests to agents cannot be counted, so all are let through: %s",
                error,
                extra={"action": "in_flight_not_counted"},
            )
        self._is_away = True

    @abstractmethod
    def _enter(self, pair: Pair, request: str, limit: int, ended: Iterable[str]) -> bool:
        """Remove the entries of ended requests, add one if a place is free, and return whether it was."""

    @abstractmethod
    def _leave(self, ended: Mapping[Pair, Iterable[str]]) -> None:
        """Remove the entries of requests that have ended."""

    @abstractmethod
    def _renew(self, requests: Mapping[Pair, Iterable[str]]) -> None:
        """Renew the leases of entries that are still there."""

    @abstractmethod
    def _counts(self) -> dict[Pair, int]:
        """Return how many entries there are whose leases have not ended."""

    @abstractmethod
    def _close(self) -> None:
        """Close the connections."""
