"""The registration of an agent that is no Celery worker of this package."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable
from typing import Any, Self

from waooaw_celery.discovery.declaration import make_profile
from waooaw_celery.discovery.health.history import HealthHistory
from waooaw_celery.discovery.health.state import DISCOVERY_FACT, Health, WorkerFacts
from waooaw_celery.errors import InvalidMessage, StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.validation import check_agent_name
from waooaw_celery.store.agents.record import PROFILE_FACT

logger = get_logger(__name__)

#: Heartbeats in the time to live of a registration: two may be lost.
HEARTBEATS = 3


class Registration:
    """An agent that is registered as long as it sends heartbeats.

    ``Registry.register`` makes it, and describes the arguments.

    Attributes:
        name: name of the agent.
        instance: which of its processes this is.
    """

    def __init__(
        self,
        app: Any,
        name: str,
        *,
        handlers: Iterable[str],
        profile: dict[str, Any],
        ttl_seconds: float,
        instance: str | None,
    ) -> None:
        if isinstance(ttl_seconds, bool) or not isinstance(ttl_seconds, int | float) or not 0 < ttl_seconds < 1e6:
            raise InvalidMessage(f"ttl_seconds must be a positive number of seconds, not {ttl_seconds!r:.80}")
        self.name = check_agent_name(name)
        self.instance = instance or f"{name}@{socket.gethostname()}:{os.getpid()}"
        self._app, self._ttl = app, float(ttl_seconds)
        self._handlers = sorted(set(handlers))
        found = make_profile(**profile)
        self._profile = found.digest(), found.to_dict()
        self._tags = sorted({each.name for each in found.capabilities})
        self._started_at = app.reference_clock.now()
        self._history = HealthHistory()
        self._running = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._registry: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.deregister()

    def start(self, *, keep_alive: bool) -> None:
        """Send the first heartbeat, and start the thread that sends the others.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        self._registry = self._app.open_registry()
        self.report(Health.HEALTHY)
        if keep_alive:
            self._thread = threading.Thread(target=self._run, name=f"waooaw-registration-{self.name}", daemon=True)
            self._thread.start()

    def beat(self) -> None:
        """Send a heartbeat. It repeats the health that was reported last, and does not change it.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        facts = WorkerFacts(
            started_at=self._started_at,
            ttl=self._ttl,
            heartbeat=self._ttl / HEARTBEATS,
            health=self._history.health,
            reasons=self._history.reasons,
            running=self._running,
            history=self._history.changes,
        )
        report = {DISCOVERY_FACT: facts.to_dict(), PROFILE_FACT: self._profile[0]}
        with self._lock:
            if self._ended.is_set():
                return
            self._registry.declare(
                self.name,
                self._handlers,
                self.instance,
                self._ttl,
                self._tags,
                self._started_at,
                report,
                self._profile,
            )

    def report(self, health: Health | str, *reasons: str, running: int = 0) -> None:
        """Report the health of the agent, and send a heartbeat.

        Args:
            health: its health.
            reasons: why it is not HEALTHY.
            running: how many messages it handles now.

        Raises:
            InvalidMessage: there is no such health.
            StoreUnavailable: the store does not answer.
        """
        try:
            health = Health(health)
        except ValueError:
            raise InvalidMessage(f"there is no health {health!r:.80}: use one of {', '.join(Health)}") from None
        self._running = running
        changed = self._history.note(health, reasons, self._app.reference_clock.now())
        self.beat()
        if changed:
            self._registry.announce(self.name)

    def deregister(self) -> None:
        """End the registration. The agent stays known, and is OFFLINE if no other process of it lives.

        Raises:
            StoreUnavailable: the store does not answer; the registration ends with its time to live.
        """
        with self._lock:
            if self._ended.is_set():
                return
            self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        try:
            self._registry.retire(self.name, self.instance)
            self._registry.announce(self.name)
        finally:
            self._registry.close()

    def _run(self) -> None:
        failed = False
        while not self._ended.wait(self._ttl / HEARTBEATS):
            try:
                self.beat()
                failed = False
            except StoreUnavailable as error:  # the next one registers the agent again
                if not failed:
                    logger.warning(
                        "a heartbeat of %s failed: %s", self.name, error, extra={"action": "registration_failed"}
                    )
                failed = True
