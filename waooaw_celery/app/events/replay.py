"""Replays events from the ledger: to one subscriber on request, or to a new subscription that catches up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING
from uuid import uuid4

from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.events.delivery import delivery_id, replayed_id
from waooaw_celery.app.events.selection import Selection
from waooaw_celery.errors import InvalidMessage, WaooawError
from waooaw_celery.messages.enums import MessageType, Priority
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.store.subscriptions import Subscription

if TYPE_CHECKING:
    from waooaw_celery.ledger.read.records import AuditRecord

#: The task of the system's worker that carries out the replays that nobody waits for.
REPLAY_TASK = "waooaw.replay"
#: Number of events that are published together if no pace is set.
BATCH_SIZE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """What a replay sent or, in a dry run, would send.

    Attributes:
        subscriber: name of the subscription, ``<agent>.<name>``.
        events: number of events.
        first_at: when the oldest event was published; None if there is none.
        last_at: when the newest event was published; None if there is none.
        message_ids: ids of the messages, in order; empty for a dry run.
    """

    subscriber: str
    events: int
    first_at: datetime | None
    last_at: datetime | None
    message_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast events are replayed. Set at most one of the two.

    Attributes:
        per_second: number of events per second, or None.
        speed: factor by which the replay is faster than the events were published, or None.

    Raises:
        InvalidMessage: both are set, or one is not a positive number.
    """

    per_second: float | None = None
    speed: float | None = None

    def __post_init__(self) -> None:
        if self.per_second is not None and self.speed is not None:
            raise InvalidMessage("per_second and speed are both set: set only one")
        for name in ("per_second", "speed"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InvalidMessage(f"{name} must be a positive number, not {value!r}")

    @property
    def free(self) -> bool:
        """Whether no pace is set."""
        return self.per_second is None and self.speed is None

    def due(self, number: int, passed: timedelta) -> float:
        """Return the seconds from the beginning of the replay until an event is due.

        Args:
            number: number of events before it.
            passed: time from the publish of the first event to that of this one.
        """
        if self.per_second is not None:
            return number / self.per_second
        return passed.total_seconds() / self.speed if self.speed is not None else 0.0


class EventReplayer:
    """Replays events.

    Args:
        app: the application whose ledger has the events and whose broker carries them.

    Raises:
        ConfigurationError: there is no ledger.
    """

    def __init__(self, app: AgentApp) -> None:
        self._app = app
        from waooaw_celery.ledger.events.event_log import EventLog

        self.log = EventLog(app.ledger)

    def replay(
        self,
        subscription: Subscription,
        selection: Selection,
        pace: Pace,
        from_agent: str,
        priority: Priority,
        dry_run: bool,
        on_progress: Callable[[int, int | None], None] | None = None,
    ) -> ReplayResult:
        """Replay events to one subscriber, and return when all are sent; see ``EventBus.replay``."""
        selected = selection.events(self.log, subscription)
        sent: list[str] = []
        first = last = None
        events = 0
        began = time.monotonic()
        for records in batches(selected, BATCH_SIZE if pace.free or dry_run else 1):
            first, last = first or records[0].receipt.sent_at, records[-1].receipt.sent_at
            if not dry_run:
                self._wait(began + pace.due(events, last - first))
                sent += self._send(subscription, records, sent, from_agent, priority)
            events += len(records)
            if on_progress is not None:
                on_progress(events, None)
        return ReplayResult(
            subscriber=subscription.subscriber,
            events=events,
            first_at=first,
            last_at=last,
            message_ids=tuple(sent),
        )

    def send_once(
        self,
        subscription: Subscription,
        records: list[AuditRecord],
        replay_id: str,
        from_agent: str,
        priority: Priority,
    ) -> None:
        """Send events of a replay that several workers may carry out in turn: each event once.

        Args:
            subscription: the subscription.
            records: the events.
            replay_id: id of the replay: with it, the id of a message depends on nothing but the event.
            from_agent: the sender.
            priority: priority of the messages.

        Raises:
            StoreUnavailable, BrokerUnavailable: a server failed; call it again to send the rest.
        """
        ids = {replayed_id(replay_id, record.receipt.message_id): record for record in records}
        known = self.log.told(ids)
        self._send_new(
            [
                (subscription.target, self._message(subscription, record, id_, from_agent, priority))
                for id_, record in ids.items()
                if id_ not in known
            ]
        )

    def catch_up(self, subscription: Subscription, since: datetime, until: datetime) -> int:
        """Send a subscriber the events of a period that it has not got, and return how many.

        Each message has the id that the publish would have given it. If two workers catch up at once, or one does
        it twice, each event is sent once.

        Args:
            subscription: the subscription.
            since: beginning of the period.
            until: end of the period, exclusive.

        Raises:
            StoreUnavailable, BrokerUnavailable: a server failed; call it again to continue.
        """
        count = 0
        selected = Selection(since=since, until=until).events(self.log, subscription)
        for records in batches(selected, BATCH_SIZE):
            ids = {delivery_id(record.receipt.message_id, subscription): record for record in records}
            known = self.log.told(ids)
            batch = [
                (subscription.target, self._message(subscription, record, id_, subscription.agent))
                for id_, record in ids.items()
                if id_ not in known
            ]
            count += self._send_new(batch)
        return count

    def _send_new(self, batch: list[tuple[HandlerName, Message]]) -> int:
        """Send messages, except those that another worker or a publisher has sent meanwhile."""
        if not batch:
            return 0
        try:
            self._app.publisher.publish(batch)
        except InvalidMessage:
            if len(batch) == 1:
                return 0
            return sum(self._send_new([pair]) for pair in batch)
        return len(batch)

    def _send(
        self,
        subscription: Subscription,
        records: list[AuditRecord],
        sent_before: list[str],
        from_agent: str,
        priority: Priority,
    ) -> list[str]:
        batch: list[tuple[HandlerName, Message]] = [
            (subscription.target, self._message(subscription, record, str(uuid4()), from_agent, priority))
            for record in records
        ]
        try:
            self._app.publisher.publish(batch)
        except WaooawError as error:
            error.message_ids = (*sent_before, *error.message_ids)
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
            raise InvalidMessage(f"the record {record.receipt.message_id} has no event attributes")
        message = Message(
            from_agent=from_agent,
            to_agent=subscription.agent,
            message_type=MessageType.EVENT,
            payload=record.payload,
            reference=record.reference,
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


def batches(records: Iterable[AuditRecord], size: int) -> Iterator[list[AuditRecord]]:
    """Yield records in lists of at most ``size``."""
    rest = iter(records)
    while batch := list(islice(rest, size)):
        yield batch
