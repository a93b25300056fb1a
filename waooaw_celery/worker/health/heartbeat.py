"""A worker's heartbeat: it declares the agents at the start, repeats that, and withdraws when the worker stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

from celery import bootsteps

from waooaw_celery.errors import SchemaConflict, StoreUnavailable, WaooawError
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.store.subscriptions import KnownSubscriptions, Subscription, Subscriptions
from waooaw_celery.worker.discovery.agent_health import AgentHealth
from waooaw_celery.worker.discovery.drain import read_orders
from waooaw_celery.worker.health.heartbeat_report import HeartbeatReport
from waooaw_celery.worker.health.ledgers import check_ledgers
from waooaw_celery.worker.health.startup_checks import (
    check_batches,
    check_broker,
    check_groups,
    check_key_pool,
    check_once,
    check_queues,
    check_time_limits,
)
from waooaw_celery.worker.remote_control import read_cancellations

logger = get_logger(__name__)

#: Missed heartbeats after which a worker counts as dead.
MAX_MISSED_HEARTBEATS = 3
#: Seconds for which a worker waits at its start until its agents are declared.
START_SECONDS = 5.0


class Heartbeat(bootsteps.StartStopStep):
    """Bootstep of the worker that checks its settings, declares its agents, and sends heartbeats.

    It has a thread of its own, so that a busy pool does not delay heartbeats, and a slow Redis does not delay the
    pool.
    """

    # After the pool has forked, so that no thread of ours is in the middle of something then.
    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        # Other bootsteps add their facts to it in their own ``create``.
        parent.heartbeat_report = HeartbeatReport()
        parent.heartbeat = self
        self._started_at: datetime | None = None
        self._stopped = threading.Event()
        self._declared = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed = False
        self._hurry = threading.Event()
        self._announce: set[str] = set()
        #: When the last heartbeat that reached the store began, by the monotonic clock.
        self._beat_at: float | None = None
        #: Seconds after which the worker counts as dead without a heartbeat.
        self.lifetime = 0.0
        #: The health of the worker's agents; it is made when the settings are checked.
        self.agent_health: AgentHealth

    def create(self, parent: Any) -> None:
        """Check the settings, the broker and the queues.

        Raises:
            SystemExit: one of them cannot work; the text says what to change. It ends ``celery worker`` without a
                traceback.
        """
        try:
            parent.app.check()
            seconds = parent.app.settings.heartbeat_seconds
            self.lifetime = seconds * MAX_MISSED_HEARTBEATS
            self.agent_health = AgentHealth(parent.app, seconds, self.lifetime)
            check_time_limits(parent.app)
            check_once(parent.app)
            check_batches(parent.app, parent)
            check_groups(parent.app)
            check_key_pool(parent.app, parent)
            check_broker(parent.app)
            check_queues(parent.app)
            check_ledgers(parent.app, parent.hostname)
            self._declare_schemas(parent.app)
            for name in parent.app.consumed_agents():
                self.agent_health.profile(name)  # before the pool forks: each process would make it anew
        except WaooawError as error:  # a wrong setting, or a ledger that does not answer
            raise SystemExit(f"Error: {error}") from error

    def _declare_schemas(self, app: Any) -> None:
        """Declare the schemas of the worker's code, if the store answers. Otherwise a heartbeat does it.

        Raises:
            SchemaConflict: another process has registered another schema for the same version.
        """
        if not app.consumed_agents() or not app.schemas.all():
            return
        subscriptions = app.open_subscriptions()
        try:
            with suppress(StoreUnavailable):
                subscriptions.declare([], app.schemas.all())
        finally:
            subscriptions.close()

    def start(self, parent: Any) -> None:
        """Declare the agents whose queues this worker consumes, and start the heartbeats."""
        parent.app.receipts.start()
        self._thread = threading.Thread(target=self._run, args=(parent,), name="waooaw-heartbeat", daemon=True)
        self._thread.start()
        # Before it consumes, because a cancellation goes to all workers that are known to live.
        self._declared.wait(START_SECONDS)

    def stop(self, parent: Any) -> None:
        """Withdraw this worker. Its agents stay known."""
        if self._thread is None:
            return
        self._stopped.set()
        self._hurry.set()
        self._thread.join(timeout=5.0)
        self._thread = None

    def terminate(self, parent: Any) -> None:
        """Withdraw this worker in a cold shutdown too."""
        self.stop(parent)

    def silent_seconds(self) -> float | None:
        """Return the seconds since the last heartbeat that reached the store; None: none has reached it yet."""
        return None if self._beat_at is None else time.monotonic() - self._beat_at

    def hurry(self, announce: str | None = None) -> None:
        """Send the next heartbeat now; call it from any thread.

        Args:
            announce: an agent about which other processes are told at once that something has changed.
        """
        if announce is not None:
            self._announce.add(announce)
        self._hurry.set()

    def _run(self, worker: Any) -> None:
        app, registry, subscriptions = worker.app, worker.app.open_registry(), worker.app.open_subscriptions()
        interval = app.settings.heartbeat_seconds
        agents = app.consumed_agents()
        renew = True
        for name in agents:
            self.agent_health.look(name)  # the first heartbeat must know it
        self._announce.update(agents)
        while True:
            began = time.monotonic()
            report = worker.heartbeat_report.collect()
            # Subscriptions first: an agent that counts as living must get its events.
            subscribed = self._write(partial(self._subscribe, app, subscriptions, renew), agents)
            declared = self._write(partial(self._declare, worker, registry, report), agents)
            self._declared.set()
            if declared is None:
                self._beat_at = began
            read = self._write(lambda _: read_cancellations(app, worker.pool), agents[:1])
            read = read or self._write(lambda _: self._read_orders(worker, registry, agents), agents[:1])
            self._log_change(subscribed or declared or read or self._tell(registry))
            renew = renew and subscribed is not None
            self._hurry.wait(interval)
            self._hurry.clear()
            if self._stopped.is_set():
                break
        retired = self._write(lambda name: registry.retire(name, worker.hostname), agents)
        self._announce.update(agents)
        self._log_change(retired or self._tell(registry))
        registry.close()
        subscriptions.close()

    def beat(self, worker: Any) -> None:
        """Send one heartbeat over new connections; call it from any thread.

        Args:
            worker: Celery's worker.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        registry, report = worker.app.open_registry(), worker.heartbeat_report.collect()
        try:
            for name in worker.app.consumed_agents():
                self._declare(worker, registry, report, name)
        finally:
            registry.close()

    def _declare(self, worker: Any, registry: Any, report: dict[str, Any], name: str) -> None:
        app = worker.app
        self._started_at = self._started_at or app.reference_clock.now()
        capabilities = self.agent_health.capabilities(name)
        health = self.agent_health
        report = {**report, **health.facts(name, self._started_at)}
        profile = health.profile(name)
        registry.declare(
            *(
                name,
                app.agents[name],
                worker.hostname,
                self.lifetime,
                capabilities,
                self._started_at,
                report,
                profile,
            )
        )

    def _read_orders(self, worker: Any, registry: Any, agents: tuple[str, ...]) -> None:
        """Read what operators have ordered; an agent that is drained from now on is shown so at once."""
        before = set(self.agent_health.drained)
        if self._started_at is not None:
            read_orders(worker, registry, agents, self._started_at)
        if changed := before ^ self.agent_health.drained:
            self._announce.update(changed)
            self._hurry.set()

    def _tell(self, registry: Any) -> Exception | None:
        """Tell other processes which agents have changed, and return the first error."""
        announced, self._announce = self._announce, set()
        return self._write(registry.announce, tuple(sorted(announced)))

    def _subscribe(self, app: Any, subscriptions: Subscriptions, renew: bool, name: str) -> None:
        declared = [each for each in app.subscribed if each.agent == name]
        subscriptions.declare(declared, renew=renew)
        subscriptions.declare((), app.schemas.all(), renew=renew)  # a conflict must not keep out the subscriptions
        if renew:
            warn_of_differences(name, declared, subscriptions.read())

    def _write(self, write: Callable[[str], Any], agents: tuple[str, ...]) -> Exception | None:
        """Write something to the store for each agent, and return the first error. The next heartbeat retries."""
        first = None
        for name in agents:
            try:
                write(name)
            except StoreUnavailable as error:  # the others would wait for it too
                return first or error
            except Exception as error:  # noqa: BLE001 - `_log_change` logs it; heartbeats must not end
                first = first or error
        return first

    def _log_change(self, error: Exception | None) -> None:
        """Log the first failed heartbeat of an outage, and the first that succeeds after it."""
        failed, self._failed = self._failed, error is not None
        if error is not None and not failed:
            # An outage needs no traceback; a defect does.
            defect = None if isinstance(error, StoreUnavailable | SchemaConflict) else error
            logger.warning(
                "a heartbeat failed; without heartbeats, this worker is shown as away: %s",
                error,
                exc_info=defect,
                extra={"action": "presence_failed"},
            )
        elif failed and error is None:
            logger.warning("heartbeats reach the store again", extra={"action": "presence_back"})


def warn_of_differences(agent: str, declared: Sequence[Subscription], known: KnownSubscriptions) -> None:
    """Log each stored subscription of an agent that differs from its code.

    Args:
        agent: name of the agent.
        declared: the subscriptions that its code declares.
        known: the stored subscriptions of all agents.
    """
    names = {each.name for each in declared}
    for each in known.subscriptions:
        if each.agent != agent:
            continue
        if each.removed_at is None and each.name not in names:
            logger.warning(
                "the subscription %s is active, but this worker has no handler for it: its events fail unless "
                "another worker of the agent has one. To end it: `waooaw events unsubscribe %s`",
                each.subscriber,
                each.subscriber,
                extra={"action": "subscription_without_handler"},
            )
        elif each.removed_at is not None and each.name in names:
            logger.warning(
                "the subscription %s was removed by command on %s and gets no events. "
                "To restore it: `waooaw events resubscribe %s`",
                each.subscriber,
                each.removed_at.isoformat(timespec="seconds"),
                each.subscriber,
                extra={"action": "subscription_removed"},
            )
