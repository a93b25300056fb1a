"""Handlers that are registered while a worker runs: the worker takes them at once, or they are refused."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import bootsteps
from celery.concurrency.prefork import TaskPool as ProcessPool

from waooaw_celery.errors import ConfigurationError, StoreUnavailable, UnknownAgent
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.store.subscriptions import KnownSubscriptions, Subscription
from waooaw_celery.worker.health.heartbeat import warn_of_differences
from waooaw_celery.worker.health.startup_checks import check_batches, check_once, check_time_limits

logger = get_logger(__name__)

#: What to do instead.
_AT_IMPORT = "Register it where its module is imported, and restart the workers"


class TakeLateHandlers(bootsteps.StartStopStep):
    """Bootstep of the worker that says from when to when it runs."""

    requires = ("waooaw_celery.worker.health.heartbeat:Heartbeat",)

    def create(self, parent: Any) -> None:
        """Note the worker before its pool forks: a process of the pool must know that a worker runs."""
        parent.app.components.late_handlers.begin(parent)

    def stop(self, parent: Any) -> None:
        """Note that no worker runs any more."""
        parent.app.components.late_handlers.end()

    def terminate(self, parent: Any) -> None:
        """Note it in a cold shutdown too."""
        self.stop(parent)


class LateHandlers:
    """Adds handlers to the worker of this process, if one runs.

    Args:
        app: the application, an AgentApp.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._worker: Any = None
        self._pid = 0
        self._lock = threading.Lock()

    def begin(self, worker: Any) -> None:
        """Note the worker.

        Args:
            worker: Celery's worker.
        """
        self._worker, self._pid = worker, os.getpid()

    def end(self) -> None:
        """Note that no worker runs any more."""
        self._worker = None

    @contextmanager
    def adding(self, target: HandlerName, subscription: Subscription | None = None) -> Iterator[None]:
        """Give the worker the handler that the block registers. Without a worker, only run the block.

        Args:
            target: the agent, and the name of the handler.
            subscription: the subscription, if it is a handler of events.

        Raises:
            ConfigurationError: not every process that gets the handler's messages would have it, or it may run
                for too long. It is not registered.
            StoreUnavailable: the store does not answer. It is not registered.
        """
        if self._worker is None:
            yield
            return
        with self._lock:
            self._check(target, subscription)
            yield
            try:
                check_time_limits(self._app)
                check_once(self._app)
                check_batches(self._app, self._worker)
            except ConfigurationError:
                self._app.tasks.unregister(str(target))
                self._app.agents[target.agent].remove(target.handler)
                raise
            self._worker.consumer.update_strategies()
            self._declare(target, subscription)

    def _check(self, target: HandlerName, subscription: Subscription | None) -> None:
        refused = f"{target} cannot be registered while a worker runs"
        if os.getpid() != self._pid or issubclass(self._worker.pool_cls, ProcessPool):
            raise ConfigurationError(
                f"{refused} with the prefork pool: its processes were forked without it. {_AT_IMPORT}, or use "
                "--pool threads"
            )
        if target.agent not in self._app.consumed_agents():
            raise ConfigurationError(
                f"{refused} that does not read the queue of {target.agent}. {_AT_IMPORT} of {target.agent}"
            )
        if subscription is not None and subscription.catch_up_from is not None:
            raise ConfigurationError(
                f"{refused} with since=: only the start of a worker sends earlier events. {_AT_IMPORT}, or leave "
                "out since= and replay the events"
            )
        try:
            others = set(self._app.registry.get(target.agent).workers) - {self._worker.hostname}
        except UnknownAgent:  # its worker has not been declared yet, so that no other one has either
            others = set()
        if others:
            raise ConfigurationError(
                f"{refused}: {', '.join(sorted(others))} would get its messages too, and would not have it. "
                f"{_AT_IMPORT}"
            )

    def _declare(self, target: HandlerName, subscription: Subscription | None) -> None:
        """Tell all processes of the handler. If the store does not answer, the next heartbeat does it."""
        try:
            self._worker.heartbeat.beat(self._worker)
            if subscription is not None:
                self._app.subscriptions.declare([subscription])
                stored = self._app.subscriptions.read().get(subscription.subscriber)
                known = KnownSubscriptions(subscriptions=(stored,), schemas=())
                warn_of_differences(target.agent, [subscription], known)
        except StoreUnavailable as error:
            logger.warning(
                "%s is known to senders only when a heartbeat reaches the store: %s",
                target,
                error,
                extra={"action": "late_handler_not_declared"},
            )
