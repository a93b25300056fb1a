"""The agents as this process knows them: at most one second old, and read again when a change is announced."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from waooaw_celery.discovery.agent_info import info_of, is_unchanged
from waooaw_celery.discovery.declaration import Profile
from waooaw_celery.discovery.snapshot import Snapshot
from waooaw_celery.errors import InvalidMessage, WaooawError
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.store.agents.record import PROFILE_FACT, AgentRecord
from waooaw_celery.store.agents.registry import AgentRegistry

logger = get_logger(__name__)

#: The greatest age of what a caller gets, in seconds.
MAX_AGE = 1.0
#: Seconds between two reads while the cache is used, unless a change is announced; and the shortest time between.
READ_SECONDS, SHORTEST_PAUSE = 0.6, 0.05
#: Seconds without use after which the cache is no longer kept fresh.
IDLE_SECONDS = 10.0


class DirectoryCache:
    """The agents as this process knows them.

    A thread reads them again while they are used, so that callers seldom wait for the store. Without that thread,
    as after a fork, a caller whose snapshot is too old reads them itself.

    Args:
        open_registry: opens the store of agents over a connection of its own.
        read_waiting: returns how many messages wait for each of some agents, by name.
    """

    def __init__(
        self,
        open_registry: Callable[[], AgentRegistry],
        read_waiting: Callable[[list[str]], Mapping[str, int]] = lambda _: {},
    ) -> None:
        self._open, self._read_waiting = open_registry, read_waiting
        self._snapshot: Snapshot | None = None
        self._profiles: dict[str, Profile] = {}
        self._lock = threading.Lock()
        self._used_at = -IDLE_SECONDS
        self._pid = os.getpid()
        #: The agents that were compared lately, and when.
        self._compared: dict[int, tuple[tuple[str, ...], float]] = {}
        self._waiting: Mapping[str, int] = {}
        self._running: Mapping[str, int] = {}
        self._records: dict[str, AgentRecord] = {}
        self._loads_at = -IDLE_SECONDS
        #: Messages that this process has sent to each agent since the loads were read.
        self.sent: Counter[str] = Counter()
        #: Requests of this process that have no answer yet, each with its agent and the end of its timeout.
        self._requests: dict[str, tuple[str, float]] = {}
        self._open_requests: Counter[str] = Counter()
        self._reader: tuple[int, threading.Thread] | None = None
        self._closed = threading.Event()
        self._registry: tuple[int, AgentRegistry] | None = None
        self._changed = threading.Condition()
        self._failed = False

    def snapshot(self) -> Snapshot:
        """Return the agents, at most one second old.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        now = self._used_at = time.monotonic()
        found = self._snapshot
        if found is not None and now - found.read_at < MAX_AGE:
            return found
        self._check_process()
        with self._lock:
            found = self._snapshot
            if found is None or time.monotonic() - found.read_at >= MAX_AGE:
                found = self._read(self._own_registry())
            self._ensure_reader()
        return found

    def refresh(self) -> Snapshot:
        """Read the agents now, because this process has changed something or needs the newest state.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        self._check_process()
        with self._lock:
            return self._read(self._own_registry())

    def loads(self, names: Sequence[str]) -> list[int]:
        """Return how many messages wait for agents, run there, or were sent to them by this process meanwhile.

        Requests of this process that have no answer yet count twice. That does not matter to a comparison.

        Args:
            names: names of the agents.
        """
        waiting, running, sent, asked = (
            self._waiting.get,
            self._running.get,
            self.sent.get,
            self._open_requests.get,
        )
        return [waiting(name, 0) + running(name, 0) + sent(name, 0) + asked(name, 0) for name in names]

    def begin_request(self, message_id: str, agent: str, until: float) -> None:
        """Note that a request to an agent has no answer yet.

        Args:
            message_id: id of the request.
            agent: name of the agent.
            until: when its caller stops waiting, by the monotonic clock.
        """
        self._requests[message_id] = agent, until
        self._open_requests[agent] += 1

    def end_request(self, message_id: str) -> None:
        """Note that a request was answered, or that nobody waits for it any more; call it as often as you like."""
        known = self._requests.pop(message_id, None)
        if known is not None:
            self._open_requests[known[0]] -= 1

    def need_loads(self, names: tuple[str, ...]) -> None:
        """Read how many messages wait, if that is not known yet.

        Args:
            names: the agents that are compared.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        now = time.monotonic()
        self._compared[id(names)] = names, now
        if now - self._loads_at >= MAX_AGE:
            self._check_process()
            with self._lock:
                if time.monotonic() - self._loads_at >= MAX_AGE:
                    self._read_loads()

    def await_snapshot(self, after: Snapshot | None, seconds: float) -> Snapshot:
        """Return the next snapshot that is read, or the present one when the time is over.

        Args:
            after: the snapshot that the caller has; None: none.
            seconds: longest time to wait.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        found = self.snapshot()
        with self._lock:
            self._ensure_reader()
        ends_at = time.monotonic() + seconds
        with self._changed:
            while found is after and (left := ends_at - time.monotonic()) > 0:
                self._used_at = time.monotonic()
                self._changed.wait(min(left, MAX_AGE))
                found = self._snapshot or found
        return found

    def close(self) -> None:
        """End the thread, and close the connections."""
        self._closed.set()
        reader, self._reader = self._reader, None
        if reader is not None and reader[0] == os.getpid() and reader[1] is not threading.current_thread():
            reader[1].join(timeout=5.0)
        registry, self._registry = self._registry, None
        if registry is not None and registry[0] == os.getpid():
            registry[1].close()

    def _check_process(self) -> None:
        """Make the locks anew in a forked process: another thread may have held one at the fork."""
        if self._pid != os.getpid():
            self._pid, self._lock, self._changed = os.getpid(), threading.Lock(), threading.Condition()

    def _own_registry(self) -> AgentRegistry:
        if self._registry is None or self._registry[0] != os.getpid():  # a connection does not survive a fork
            self._registry = os.getpid(), self._open()
        return self._registry[1]

    def _read(self, registry: AgentRegistry) -> Snapshot:
        began = time.monotonic()
        records = registry.all()
        named = {
            (record.name, node, str(report[PROFILE_FACT]))
            for record in records
            for node, report in record.reports.items()
            if report.get(PROFILE_FACT)
        }
        missing = [each for each in named if each[2] not in self._profiles]
        if missing:
            for digest, form in registry.profiles(missing).items():
                profile = _profile(form)
                if profile is not None:
                    self._profiles[digest] = profile
        if len(self._profiles) > 2 * len(named) + 100:
            digests = {digest for _, _, digest in named}
            self._profiles = {digest: each for digest, each in self._profiles.items() if digest in digests}
        profiles = self._profiles
        before = self._snapshot.agents if self._snapshot is not None else {}
        infos = {
            record.name: before[record.name]
            if record.name in before and is_unchanged(record, self._records.get(record.name), before[record.name])
            else info_of(record, profiles)
            for record in records
        }
        snapshot = Snapshot(infos, began)
        if self._snapshot is not None and self._snapshot.read_at > began:  # another thread was faster
            return self._snapshot
        self._snapshot = snapshot
        self._records = {record.name: record for record in records}
        self._running = {name: info.running for name, info in infos.items() if info.running}
        with self._changed:
            self._changed.notify_all()
        return snapshot

    def _read_loads(self) -> None:
        began, sent = time.monotonic(), Counter(self.sent)
        for key, (_, compared_at) in tuple(self._compared.items()):
            if began - compared_at > IDLE_SECONDS:
                self._compared.pop(key, None)
        names = {name for compared, _ in tuple(self._compared.values()) for name in compared}
        self._waiting = self._read_waiting(sorted(names)) if names else {}
        self.sent -= sent
        self._loads_at = began
        for message_id, (_, until) in tuple(self._requests.items()):  # of callers that were cancelled
            if until < began:
                self.end_request(message_id)

    def _ensure_reader(self) -> None:
        if self._closed.is_set():
            return
        if self._reader is not None and self._reader[0] == os.getpid() and self._reader[1].is_alive():
            return
        thread = threading.Thread(target=self._keep_fresh, name="waooaw-directory", daemon=True)
        self._reader = os.getpid(), thread
        thread.start()

    def _keep_fresh(self) -> None:
        """Read the agents again and again while they are used."""
        registry: Any = None
        try:
            registry = self._open()
            while not self._closed.is_set() and time.monotonic() - self._used_at < IDLE_SECONDS:
                began = time.monotonic()
                try:
                    registry.await_change(READ_SECONDS)
                    self._read(registry)
                    if self._compared:
                        self._read_loads()
                    self._failed = False
                except WaooawError as error:  # a caller that needs an answer asks itself, and gets the error
                    if not self._failed:
                        logger.warning(
                            "the list of agents cannot be kept fresh: %s",
                            error,
                            extra={"action": "directory_stale"},
                        )
                    self._failed = True
                    self._closed.wait(READ_SECONDS)
                # Many changes at once, such as the start of many workers, are read together.
                self._closed.wait(max(SHORTEST_PAUSE - (time.monotonic() - began), 0.0))
        finally:
            if registry is not None:
                registry.close()


def _profile(form: Mapping[str, Any]) -> Profile | None:
    known = {name: value for name, value in form.items() if name in Profile.__dataclass_fields__}
    try:
        return Profile.from_dict(known)
    except InvalidMessage as error:
        logger.warning("cannot read what an agent declares: %s", error, extra={"action": "profile_not_readable"})
        return None
