"""Where dead letters are kept: what is asked of every broker, and a connection to one that ends in time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from amqp.exceptions import AMQPError, IrrecoverableConnectionError
from kombu.exceptions import KombuError, LimitExceeded, OperationalError
from redis.exceptions import RedisError

from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter
from waooaw_celery.errors import BrokerUnavailable

#: Seconds to wait for a connection of the application's pool.
DEADLINE_SECONDS = 5.0
#: What brokers raise.
BROKER_ERRORS = (OperationalError, KombuError, AMQPError, RedisError, OSError)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterFilter:
    """Which letters are meant: those that fit all that is said.

    Attributes:
        agent: to this agent.
        queue: from this queue.
        reason: whose reason contains this, in any case.
        since: that died at this moment or later, aware.
        ids: these letters.
    """

    agent: str | None = None
    queue: str | None = None
    reason: str | None = None
    since: datetime | None = None
    ids: Collection[str] | None = None

    def fits(self, letter: DeadLetter) -> bool:
        """Whether a letter is meant."""
        return (
            (self.agent is None or letter.agent == self.agent)
            and (self.queue is None or letter.queue == self.queue)
            and (self.reason is None or self.reason.casefold() in letter.reason.casefold())
            and (self.since is None or letter.at >= self.since)
            and (self.ids is None or letter.id in self.ids)
        )


class DeadLetterStorage(ABC):
    """The dead letters of a broker; the oldest make room when there are too many.

    Every method raises BrokerUnavailable when the broker does not answer.

    Args:
        app: the application, an AgentApp, whose broker it is.
        most: how many are kept, about.
    """

    def __init__(self, app: Any, most: int) -> None:
        self._app, self._most = app, most

    @abstractmethod
    def add(self, queue: str, reason: str, raw: bytes) -> None:
        """Keep a letter; when this returns, the broker has it.

        Args:
            queue: from which its message came.
            reason: why it died, a sentence.
            raw: the message's bytes.
        """

    @abstractmethod
    def list(self, choice: DeadLetterFilter, limit: int) -> Sequence[DeadLetter]:
        """Return letters, the newest first.

        Args:
            choice: which.
            limit: how many at most.
        """

    @abstractmethod
    def remove(self, ids: Collection[str]) -> set[str]:
        """Remove letters, and return the ids of those that were there."""

    def _with(self, what: str, do: Callable[[Any], T], times: int = 2) -> T:
        """Do something over a connection of the application's, once more when an idle one turns out to be dead.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        error: Exception | None = None
        for _ in range(times):
            try:
                with self._app.pool.acquire(block=True, timeout=DEADLINE_SECONDS) as connection:
                    try:
                        connection.ensure_connection(max_retries=1, interval_start=0, timeout=DEADLINE_SECONDS)
                        return do(connection)
                    except (*connection.connection_errors, *connection.channel_errors):
                        with suppress(*BROKER_ERRORS):
                            connection.collect(socket_timeout=1.0)
                        raise
            except BROKER_ERRORS as failed:
                error = failed
                if isinstance(failed, IrrecoverableConnectionError | LimitExceeded):
                    break  # it froze: to ask it again would only take as long once more
        raise BrokerUnavailable(f"could not {what}: the broker says: {error}") from error
