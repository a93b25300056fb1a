"""A new subscriber that wants what was published before it was there gets it when its worker starts."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from typing import Any

from celery import bootsteps

from waooaw_celery.agents.events.replay import EventReplayer
from waooaw_celery.errors import BrokerUnavailable, StoreUnavailable, UnknownSubscription
from waooaw_celery.store.subscriptions import CACHE_SECONDS, Subscription, Subscriptions

logger = logging.getLogger(__name__)

#: After so much time every publisher knows of a subscription, also one whose clock is a little behind.
_SETTLED = timedelta(seconds=CACHE_SECONDS + 1.0)


class CatchUp(bootsteps.StartStopStep):
    """Bootstep of a worker with subscriptions that want to catch up.

    A thread of its own does it, so that the worker handles messages meanwhile; a worker that is stopped on the way
    goes on when it starts again.
    """

    requires = ("waooaw_celery.worker.health.heartbeat:Heartbeat",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def create(self, parent: Any) -> None:
        """Refuse to start without a ledger, which alone knows what was published.

        Raises:
            SystemExit: the sentence says what to change.
        """
        if parent.app.settings.database_url is None:
            names = ", ".join(each.subscriber for each in parent.app.subscribed if each.catch_up_from)
            raise SystemExit(f"Error: {names} has since=, which needs the ledger: set WAOOAW_DATABASE_URL")

    def start(self, parent: Any) -> None:
        """Begin, in the background."""
        self._thread = threading.Thread(target=self._run, args=(parent.app,), name="waooaw-catch-up", daemon=True)
        self._thread.start()

    def stop(self, parent: Any) -> None:
        """Leave the rest for the next start."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None

    def terminate(self, parent: Any) -> None:
        """Stop also when the worker is shut down cold."""
        self.stop(parent)

    def _run(self, app: Any) -> None:
        subscriptions = app.open_subscriptions()
        agents = app.consumed_agents()
        try:
            for each in app.subscribed:
                if each.catch_up_from is not None and each.agent in agents:
                    self._try_until_done(app, subscriptions, each)
        finally:
            subscriptions.close()

    def _try_until_done(self, app: Any, subscriptions: Subscriptions, mine: Subscription) -> None:
        told = False
        while not self._stopped.is_set():
            try:
                self._catch_up(app, subscriptions, subscriptions.read().get(mine.subscriber))
            except UnknownSubscription:  # the worker is about to declare it
                self._stopped.wait(0.1)
            except (StoreUnavailable, BrokerUnavailable) as error:
                if not told:  # one line an incident
                    logger.warning("%s; catching up goes on later", error, extra={"action": "catch_up_failed"})
                told = True
                self._stopped.wait(app.settings.heartbeat_seconds)
            else:
                return

    def _catch_up(self, app: Any, subscriptions: Subscriptions, kept: Subscription) -> None:
        if kept.catch_up_from is None or kept.subscribed_at is None or kept.removed_at is not None:
            return
        replayer = EventReplayer(app)
        count = replayer.catch_up(kept, kept.catch_up_from, kept.subscribed_at)
        # What was published by those who did not know of it yet.
        settled = kept.subscribed_at + _SETTLED
        if self._stopped.wait(max((settled - app.reference_clock.now()).total_seconds(), 0.0)):
            return
        count += replayer.catch_up(kept, kept.subscribed_at - _SETTLED, settled)
        subscriptions.caught_up(kept)
        logger.info("%s caught up with %d events", kept.subscriber, count, extra={"action": "caught_up"})
