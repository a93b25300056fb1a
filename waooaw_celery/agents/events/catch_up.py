"""Catch-up: when the worker of a new subscription starts, it gets the earlier events that ``since`` asks for."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

from celery import bootsteps

from waooaw_celery.app.events.replay import EventReplayer
from waooaw_celery.errors import BrokerUnavailable, StoreUnavailable, UnknownSubscription
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.wording import counted
from waooaw_celery.store.subscriptions import CACHE_SECONDS, Subscription, Subscriptions

logger = get_logger(__name__)

#: Time after which all publishers know a new subscription, even those whose clocks are slightly behind.
_SETTLING_TIME = timedelta(seconds=CACHE_SECONDS + 1.0)


class CatchUp(bootsteps.StartStopStep):
    """The bootstep of a worker that has subscriptions with ``since``.

    It runs in its own thread, so that the worker handles messages meanwhile. If the worker stops before the end,
    the next start continues.
    """

    requires = ("waooaw_celery.worker.health.heartbeat:Heartbeat",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def create(self, parent: Any) -> None:
        """Refuse to start without a ledger, which records the events.

        Raises:
            SystemExit: there is no ledger.
        """
        if parent.app.settings.database_url is None:
            names = ", ".join(each.subscriber for each in parent.app.subscribed if each.catch_up_from)
            raise SystemExit(f"Error: {names} has since=, which needs the ledger: set WAOOAW_DATABASE_URL")

    def start(self, parent: Any) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, args=(parent.app,), name="waooaw-catch-up", daemon=True)
        self._thread.start()

    def stop(self, parent: Any) -> None:
        """Stop the thread; the next start of the worker sends the rest."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None

    def terminate(self, parent: Any) -> None:
        """Stop the thread in a cold shutdown too."""
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

    def _try_until_done(self, app: Any, subscriptions: Subscriptions, declared: Subscription) -> None:
        logged = False
        while not self._stopped.is_set():
            try:
                self._catch_up(app, subscriptions, subscriptions.read().get(declared.subscriber))
            except UnknownSubscription:  # the worker is about to declare it
                self._stopped.wait(0.1)
            except (StoreUnavailable, BrokerUnavailable) as error:
                if not logged:  # one line for each outage
                    logger.warning(
                        "%s; the catch-up of %s is retried",
                        error,
                        declared.subscriber,
                        extra={"action": "catch_up_failed"},
                    )
                logged = True
                self._stopped.wait(app.settings.heartbeat_seconds)
            else:
                return

    def _catch_up(self, app: Any, subscriptions: Subscriptions, stored: Subscription) -> None:
        if stored.catch_up_from is None or stored.subscribed_at is None or stored.removed_at is not None:
            return
        replayer = EventReplayer(app)
        count = replayer.catch_up(stored, stored.catch_up_from, stored.subscribed_at)
        # Then the events of publishers that did not know the subscription yet.
        settled = stored.subscribed_at + _SETTLING_TIME
        if self._stopped.wait(max((settled - app.reference_clock.now()).total_seconds(), 0.0)):
            return
        count += replayer.catch_up(stored, stored.subscribed_at - _SETTLING_TIME, settled)
        subscriptions.caught_up(stored)
        logger.info(
            "%s caught up with %s", stored.subscriber, counted(count, "event"), extra={"action": "caught_up"}
        )
