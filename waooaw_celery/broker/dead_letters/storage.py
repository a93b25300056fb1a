"""The interface of dead-letter storage, and a bounded way to use one of the application's connections."""

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
from waooaw_celery.store.redis_refusals import explained

#: Seconds to wait for a connection of the application's pool.
DEADLINE_SECONDS = 5.0
#: What brokers raise.
BROKER_ERRORS = (OperationalError, KombuError, AMQPError, RedisError, OSError)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterFilter:
    """Selects dead letters: those that match every field that is not None.

    Attributes:
        agent: The agent that the message was for.
        queue: The queue that it came from.
        reason: A part of the reason; upper and lower case are the same.
        since: The earliest time of death, aware.
        ids: The ids of the dead letters.
        where: A condition on the dead letter.
        message_id: The id of the message.
    """

    agent: str | None = None
    queue: str | None = None
    reason: str | None = None
    since: datetime | None = None
    ids: Collection[str] | None = None
    where: Callable[[DeadLetter], bool] | None = None
    message_id: str | None = None

    def matches(self, dead_letter: DeadLetter) -> bool:
        """Return whether a dead letter is selected."""
        return (
            (self.agent is None or dead_letter.agent == self.agent)
            and (self.queue is None or dead_letter.queue == self.queue)
            and (self.reason is None or self.reason.casefold() in dead_letter.reason.casefold())
            and (self.since is None or dead_letter.at >= self.since)
            and (self.ids is None or dead_letter.id in self.ids)
            and (self.where is None or self.where(dead_letter))
            and (self.message_id is None or dead_letter.message_id == self.message_id)
        )


class DeadLetterStorage(ABC):
    """The dead letters of a broker. If there are too many, the oldest make room.

    Every method raises BrokerUnavailable if the broker does not answer.

    Args:
        app: The AgentApp of the broker.
        max_count: The approximate maximum of dead letters.
    """

    def __init__(self, app: Any, max_count: int) -> None:
        self._app, self._max_count = app, max_count

    @abstractmethod
    def add(self, queue: str, reason: str, *raw: bytes) -> None:
        """Store dead letters. When this returns, the broker has them.

        Args:
            queue: The queue that the message came from.
            reason: Why it died, a sentence.
            raw: The bytes of each message.
        """

    @abstractmethod
    def list(self, selected: DeadLetterFilter, limit: int) -> Sequence[DeadLetter]:
        """Return dead letters, the newest first.

        Args:
            selected: Which dead letters.
            limit: The maximum to return.
        """

    @abstractmethod
    def remove(self, ids: Collection[str]) -> set[str]:
        """Remove dead letters, and return the ids of those that existed."""

    def _with_connection(self, what: str, do: Callable[[Any], T], attempts: int = 2) -> T:
        """Do something over a pooled connection, and try again if an idle connection turns out to be closed.

        Raises:
            BrokerUnavailable: The broker does not answer.
        """
        error: Exception | None = None
        for _ in range(attempts):
            try:
                with self._app.pool.acquire(block=True, timeout=DEADLINE_SECONDS) as connection:
                    try:
                        connection.ensure_connection(max_retries=1, interval_start=0, timeout=DEADLINE_SECONDS)
                        return do(connection)
                    except (*connection.connection_errors, *connection.channel_errors):
                        with suppress(*BROKER_ERRORS):
                            connection.collect(socket_timeout=1.0)
                        raise
            except BrokerUnavailable:  # it says why, and another attempt would only wait as long again
                raise
            except BROKER_ERRORS as failed:
                error = failed
                if isinstance(failed, IrrecoverableConnectionError | LimitExceeded):
                    break  # the broker hangs: another attempt would only take as long again
        reason = "" if error is None else explained(error)
        raise BrokerUnavailable(f"could not {what}: {reason}") from error
