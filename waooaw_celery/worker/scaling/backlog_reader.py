"""Reads what waits in a worker's queues: how many messages, and for how long they have waited."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from datetime import datetime
from typing import Any

from waooaw_celery.errors import UnknownAgent
from waooaw_celery.messages.message import ENVELOPE_HEADER
from waooaw_celery.messages.queues import agent_queue, queue_depth
from waooaw_celery.worker.scaling.scaling_rule import Backlog


class BacklogReader:
    """Reads what waits for the agents of a worker. Only one thread may call ``read`` and ``close``.

    No broker tells the age of a message that waits. It is at most the time since the queues were last empty, and
    at most the age of the message that was received last. The lower of the two is taken.

    Args:
        app: the application, an AgentApp.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._connection: Any = None
        self._registry: Any = None
        self._workers: dict[str, int] = {}
        self._workers_read_at = -math.inf
        self._empty_at = time.monotonic()
        self._last_sent_at: str | None = None

    def received(self, request: Any) -> None:
        """Note a message that the worker received; call it from any thread.

        Args:
            request: Celery's request.
        """
        headers = request.request_dict
        if headers.get("retries") or headers.get("eta"):  # it did not wait in the queue all the time
            return
        envelope = headers.get(ENVELOPE_HEADER)
        sent_at = envelope.get("sent_at") if isinstance(envelope, dict) else None
        self._last_sent_at = sent_at if isinstance(sent_at, str) else None

    def read(self) -> Backlog:
        """Return the worker's share of the messages that wait, and for how long they have waited.

        Raises:
            StoreUnavailable: the store, which knows the other workers, does not answer.
            Exception: an error of the broker's client.
        """
        agents = self._app.consumed_agents()
        waiting = {name: self._depth(name) for name in agents}
        if not any(waiting.values()):
            self._empty_at = time.monotonic()
            return Backlog(0, 0.0)
        self._count_workers(agents)
        shares = (math.ceil(count / self._workers.get(name, 1)) for name, count in waiting.items())
        return Backlog(sum(shares), self._waited())

    def close(self) -> None:
        """Close the connections."""
        connection, registry = self._connection, self._registry
        self._connection = self._registry = None
        if connection is not None:
            connection.release()
        if registry is not None:
            registry.close()

    def _depth(self, agent: str) -> int:
        if self._connection is None:
            self._connection = self._app.connection_for_write()
        depth = queue_depth(self._connection, agent_queue(agent))
        return depth.total - depth.blocked  # a larger pool does not handle those whose keys are busy

    def _waited(self) -> float:
        since_empty = time.monotonic() - self._empty_at
        with suppress(ValueError):  # a sender may write anything
            sent_at = datetime.fromisoformat(self._last_sent_at) if self._last_sent_at is not None else None
            if sent_at is not None and sent_at.tzinfo is not None:
                age: float = (self._app.reference_clock.now() - sent_at).total_seconds()
                return max(min(since_empty, age), 0.0)
        return since_empty

    def _count_workers(self, agents: tuple[str, ...]) -> None:
        """Count the living workers of each agent, once for each heartbeat."""
        now = time.monotonic()
        if now - self._workers_read_at < self._app.settings.heartbeat_seconds:
            return
        if self._registry is None:
            self._registry = self._app.open_registry()
        for name in agents:
            with suppress(UnknownAgent):  # its first heartbeat is still on its way
                self._workers[name] = max(len(self._registry.get(name).workers), 1)
        self._workers_read_at = now
