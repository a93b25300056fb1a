"""A worker's heartbeat: it declares the agents at the start, repeats that, and withdraws when the worker stops."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from celery import bootsteps

from waooaw_celery.errors import StoreUnavailable, WaooawError
from waooaw_celery.store.subscriptions import KnownSubscriptions, Subscription, Subscriptions
from waooaw_celery.worker.health.heartbeat_report import HeartbeatReport
from waooaw_celery.worker.health.startup_checks import check_broker, check_once, check_time_limits
from waooaw_celery.worker.remote_control import read_cancellations

logger = logging.getLogger(__name__)

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

    def create(self, parent: Any) -> None:
        """Check the settings and the broker.

        Raises:
            SystemExit: one of them cannot work; the text says what to change. It ends ``celery worker`` without a
                traceback.
        """
        try:
            parent.app.check()
            check_time_limits(parent.app)
            check_once(parent.app)
            check_broker(parent.app)
        except WaooawError as error:  # a wrong setting, or a ledger that does not answer
            raise SystemExit(f"Error: {error}") from error

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
        self._thread.join(timeout=5.0)
        self._thread = None

    def terminate(self, parent: Any) -> None:
        """Withdraw this worker in a cold shutdown too."""
        self.stop(parent)

    def _run(self, worker: Any) -> None:
        app, registry, subscriptions = worker.app, worker.app.open_registry(), worker.app.open_subscriptions()
        interval = app.settings.heartbeat_seconds
        agents = app.consumed_agents()
        renew = True
        while True:
            report = worker.heartbeat_report.collect()
            # Subscriptions first: an agent that counts as living must get its events.
            if self._for_each(partial(self._subscribe, app, subscriptions, renew), agents):
                renew = False
            self._for_each(partial(self._declare, worker, registry, report), agents)
            self._declared.set()
            self._for_each(lambda _: read_cancellations(app, worker.pool), agents[:1])
            if self._stopped.wait(interval):
                break
        self._for_each(lambda name: registry.retire(name, worker.hostname), agents)
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
        lifetime = app.settings.heartbeat_seconds * MAX_MISSED_HEARTBEATS
        capabilities = app.capabilities.get(name, ())
        registry.declare(name, app.agents[name], worker.hostname, lifetime, capabilities, self._started_at, report)

    def _subscribe(self, app: Any, subscriptions: Subscriptions, renew: bool, name: str) -> None:
        declared = [each for each in app.subscribed if each.agent == name]
        subscriptions.declare(declared, app.schemas.all(), renew=renew)
        if renew:
            warn_of_differences(name, declared, subscriptions.read())

    def _for_each(self, write: Callable[[str], Any], agents: tuple[str, ...]) -> bool:
        """Write something to the store for each agent, and return whether the store accepted all of it."""
        for name in agents:
            try:
                write(name)
            except StoreUnavailable as error:  # the next heartbeat tries again
                if not self._failed:  # one line per outage
                    logger.warning("%s", error, extra={"action": "presence_failed"})
                self._failed = True
                return False
        if self._failed:
            logger.warning("heartbeats reach the store again", extra={"action": "presence_back"})
        self._failed = False
        return True


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
                "the subscription %s stands, and this worker has no handler for it: its events will fail. "
                "`waooaw events unsubscribe %s` ends it",
                each.subscriber,
                each.subscriber,
                extra={"action": "subscription_without_handler"},
            )
        elif each.removed_at is not None and each.name in names:
            logger.warning(
                "the subscription %s was removed by command on %s and gets no events: "
                "`waooaw events resubscribe %s` brings it back",
                each.subscriber,
                each.removed_at.isoformat(timespec="seconds"),
                each.subscriber,
                extra={"action": "subscription_removed"},
            )
