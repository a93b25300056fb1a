"""What the workers of all ledgers, and those without one, declare in the Redis that they share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.store.agents.record import AgentRecord
from waooaw_celery.store.agents.redis import RedisAgentRegistry
from waooaw_celery.store.agents.worker_handlers import known_handlers

logger = get_logger(__name__)

T = TypeVar("T")
#: Seconds after a failure for which Redis is not asked again, so that a frozen one delays only one call.
PAUSE_SECONDS = 5.0


def merged(record: AgentRecord, other: AgentRecord) -> AgentRecord:
    """Return a record of an agent with the living workers of another record of it as well.

    Args:
        record: the record of this process's own registry.
        other: a record that was read at about the same time.
    """
    is_newer = other.last_seen is not None and (record.last_seen is None or other.last_seen > record.last_seen)
    newest = other if is_newer else record
    workers = tuple(sorted({*record.workers, *other.workers}))
    worker_handlers = {**other.worker_handlers, **record.worker_handlers}
    declared_last = record.handlers if record.handlers is not None else other.handlers
    return replace(
        record,
        handlers=known_handlers(declared_last, workers, worker_handlers),
        capabilities=record.capabilities or other.capabilities,
        declared_at=record.declared_at or other.declared_at,
        last_seen=newest.last_seen,
        read_at=newest.read_at,
        workers=workers,
        worker_handlers=worker_handlers,
        reports={**other.reports, **record.reports},
    )


class SharedDeclarations:
    """The declarations in Redis, for a process whose own registry is in a ledger.

    They show processes with different ledgers, and processes without one, each other's workers. The process works
    without them: while Redis does not answer, they count as empty.

    Args:
        registry: the registry in Redis.
    """

    def __init__(self, registry: RedisAgentRegistry) -> None:
        self._registry = registry
        self._paused_until = 0.0
        self._failed = False

    def declare(self, name: str, *args: Any) -> None:
        """Declare a worker; the arguments are those of ``AgentRegistry.declare``."""
        self._attempt(lambda: self._registry.declare(name, *args), None)

    def retire(self, name: str, worker: str) -> None:
        """Record that a worker of an agent has stopped."""
        self._attempt(lambda: self._registry.retire(name, worker), None)

    def forget(self, name: str) -> None:
        """Forget an agent that has no living worker."""
        self._attempt(lambda: self._registry.forget(name), None)

    def announce(self, name: str) -> None:
        """Tell all processes that something about an agent has changed."""
        self._attempt(lambda: self._registry.announce(name), None)

    def await_change(self, seconds: float) -> bool:
        """Wait until another process announces a change, and return whether one did."""
        began = time.monotonic()
        heard: bool = self._attempt(lambda: self._registry.await_change(seconds), False)
        if not heard:  # Redis does not answer
            time.sleep(max(began + seconds - time.monotonic(), 0.0))
        return heard

    def living(self, name: str) -> AgentRecord | None:
        """Return the record of an agent with living workers, or None."""
        [record] = self._attempt(lambda: self._registry.read([name]), [None])
        return record if record is not None and record.workers else None

    def all_living(self) -> list[AgentRecord]:
        """Return the records of all agents with living workers, sorted by name."""
        return [record for record in self._attempt(self._registry.all, []) if record.workers]

    def close(self) -> None:
        """Close the connections of this process."""
        self._registry.close()

    def _attempt(self, call: Callable[[], T], otherwise: Any) -> T:
        if time.monotonic() < self._paused_until:
            return otherwise  # type: ignore[no-any-return]
        try:
            result = call()
        except StoreUnavailable as error:
            self._paused_until = time.monotonic() + PAUSE_SECONDS
            if not self._failed:
                logger.warning(
                    "workers of other ledgers are not seen, and do not see this process: %s",
                    error,
                    extra={"action": "shared_store_failed"},
                )
            self._failed = True
            return otherwise  # type: ignore[no-any-return]
        self._failed = False
        return result
