"""Events told again from the ledger: to one subscriber by command, or to a new one that wants to catch up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from uuid import uuid4

from waooaw_celery.agents.events.delivery import delivery_id
from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import InvalidMessage, WaooawError
from waooaw_celery.ledger.event_log import EventLog
from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.messages.message import Message, MessageType, Priority
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.messages.topics.patterns import matches
from waooaw_celery.store.subscriptions import Subscription

#: Events that are handed over together when nobody asked for a pace.
BATCH_SIZE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """What a replay told, or would tell.

    Attributes:
        subscriber: whom.
        events: how many events.
        first_at: when the oldest was published; None without any.
        last_at: when the newest was published; None without any.
        message_ids: of the messages, in order; empty for a dry run.
    """

    subscriber: str
    events: int
    first_at: datetime | None
    last_at: datetime | None
    message_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast events are told again.

    Attributes:
        per_second: how many a second.
        speed: times as fast as they were published.
    """

    per_second: float | None = None
    speed: float | None = None

    def __post_init__(self) -> None:
        if self.per_second is not None and self.speed is not None:
            raise InvalidMessage("a replay has one pace: per_second or speed")
        for name in ("per_second", "speed"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InvalidMessage(f"{name} must be a positive number, not {value!r}")

    @property
    def free(self) -> bool:
        """Whether nobody asked for a pace."""
        return self.per_second is None and self.speed is None

    def due(self, number: int, passed: timedelta) -> float:
        """Return after how many seconds an event is due.

        Args:
            number: how many were before it.
            passed: how long after the first it was published.
        """
        if self.per_second is not None:
            return number / self.per_second
        return passed.total_seconds() / self.speed if self.speed is not None else 0.0


class EventReplayer:
    """Tells events again.

    Args:
        app: the application whose ledger has them and whose broker carries them.

    Raises:
        ConfigurationError: there is no ledger.
    """

    def __init__(self, app: AgentApp) -> None:
        self._app = app
        self._log = EventLog(app.ledger)

    def replay(
        self,
        subscription: Subscription,
        *,
        since: datetime | None,
        until: datetime | None,
        conversation: str | None,
        pattern: str,
        where: Filter | None,
        pace: Pace,
        from_agent: str,
        priority: Priority,
        dry_run: bool,
    ) -> ReplayResult:
        """Tell one subscriber again: as ``EventBus.replay``."""
        if since is None and conversation is None:
            raise InvalidMessage("a replay needs a beginning, since, or a conversation")
        if subscription.removed_at is not None:
            raise InvalidMessage(f"the subscription {subscription.subscriber} was removed: resubscribe it first")
        chosen = (
            record
            for record in self._log.events(since, until or self._app.reference_clock.now(), conversation)
            if _wants(subscription, record)
            and matches(pattern, record.receipt.handler)
            and (where is None or where.fits(record.payload))
        )
        told: list[str] = []
        first = last = None
        events = 0
        began = time.monotonic()
        for part in _parts(chosen, BATCH_SIZE if pace.free or dry_run else 1):
            first, last = first or part[0].receipt.sent_at, part[-1].receipt.sent_at
            if not dry_run:
                self._wait(began + pace.due(events, last - first))
                told += self._tell(subscription, part, told, from_agent, priority)
            events += len(part)
        return ReplayResult(
            subscriber=subscription.subscriber,
            events=events,
            first_at=first,
            last_at=last,
            message_ids=tuple(told),
        )

    def catch_up(self, subscription: Subscription, since: datetime, until: datetime) -> int:
        """Tell a subscriber of the events of a stretch of time of which it was not told, and return how many.

        Their messages have the ids that they would have had, so that done twice, or by two workers at once, it
        tells each event once.

        Raises:
            StoreUnavailable, BrokerUnavailable: a server failed; done again, it goes on.
        """
        count = 0
        for part in _parts((r for r in self._log.events(since, until) if _wants(subscription, r)), BATCH_SIZE):
            ids = {delivery_id(record.receipt.message_id, subscription): record for record in part}
            told = self._log.told(ids)
            batch = [
                (subscription.target, self._message(subscription, record, id_, subscription.agent))
                for id_, record in ids.items()
                if id_ not in told
            ]
            count += self._tell_new(batch)
        return count

    def _tell_new(self, batch: list[tuple[HandlerName, Message]]) -> int:
        """Send messages, but for those that another worker or a publisher was faster to send."""
        if not batch:
            return 0
        try:
            self._app.publisher.publish(batch)
        except InvalidMessage:
            if len(batch) == 1:
                return 0
            return sum(self._tell_new([pair]) for pair in batch)
        return len(batch)

    def _tell(
        self,
        subscription: Subscription,
        part: list[AuditRecord],
        before: list[str],
        from_agent: str,
        priority: Priority,
    ) -> list[str]:
        batch: list[tuple[HandlerName, Message]] = [
            (subscription.target, self._message(subscription, record, str(uuid4()), from_agent, priority))
            for record in part
        ]
        try:
            self._app.publisher.publish(batch)
        except WaooawError as error:
            error.message_ids = (*before, *error.message_ids)
            raise
        return [message.message_id for _, message in batch]

    def _message(
        self,
        subscription: Subscription,
        record: AuditRecord,
        message_id: str,
        from_agent: str,
        priority: Priority | None = None,
    ) -> Message:
        if record.event is None:
            raise InvalidMessage(f"the record {record.receipt.message_id} has no attributes of an event")
        message = Message(
            from_agent=from_agent,
            to_agent=subscription.agent,
            message_type=MessageType.EVENT,
            payload=record.payload,
            priority=priority or record.receipt.priority,
            ttl_seconds=self._app.settings.event_ttl_seconds,
            message_id=message_id,
            correlation_id=record.receipt.correlation_id,
            conversation_id=record.conversation_id,
            causation_id=record.receipt.message_id,
            event=replace(record.event, replay=True),
        )
        return self._app.message_factory.complete(subscription.target, message)

    def _wait(self, until: float) -> None:
        pause = until - time.monotonic()
        if pause > 0:
            time.sleep(pause)


def _wants(subscription: Subscription, record: AuditRecord) -> bool:
    return subscription.wants(record.receipt.handler, record.payload)


def _parts(records: Iterable[AuditRecord], size: int) -> Iterator[list[AuditRecord]]:
    rest = iter(records)
    while part := list(islice(rest, size)):
        yield part
