"""The event log: the published events in the ledger, read in order or counted by topic and subscriber."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, exists, func, select, tuple_, union

from waooaw_celery.errors import UnknownMessage
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow, OpenMessageRow
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.read.reader import force_index_scans, message_columns, read_records
from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.ledger.read.scan import same_message, sent_between
from waooaw_celery.messages.message import NO_RECIPIENT
from waooaw_celery.messages.queues import EVENT_HANDLERS, HandlerName
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.messages.validation import JSON, check_id

#: Events read by one query.
PAGE_SIZE = 500
#: Seconds that statistics may take: they read every event of their period.
DEADLINE_SECONDS = 60.0

#: What messages are counted by.
_SUBSCRIBER = (MessageRow.topic, MessageRow.to_agent, MessageRow.handler)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberStatistics:
    """The events of one topic for one subscriber.

    Attributes:
        topic: the topic.
        subscriber: ``<agent>.<subscription>``.
        messages: how many messages it was sent, replays included.
        delivered: how many its worker has begun to handle.
        handled: how many it has handled.
        failed: how many ended otherwise: failed, expired, dead or cancelled.
        waiting: how many are open and were not begun.
        lag_seconds: the age in seconds of the oldest one that waits; None if none waits.
    """

    topic: str
    subscriber: str
    messages: int
    delivered: int
    handled: int
    failed: int
    waiting: int
    lag_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicStatistics:
    """The events of one topic.

    Attributes:
        topic: the topic.
        published: how many events were published; replays are not counted.
        last_at: when the newest event was published; None if the period has only replays.
        subscribers: the statistics of each subscriber.
    """

    topic: str
    published: int
    last_at: datetime | None
    subscribers: tuple[SubscriberStatistics, ...]


class EventLog:
    """The published events in the ledger.

    Every method raises AuditUnavailable if the database does not answer.

    Example:
        >>> for record in EventLog(app.ledger).events(since=yesterday):
        ...     print(record.event.topic, record.payload)

    Args:
        ledger: the ledger, such as ``app.ledger``.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def payload(self, record: AuditRecord) -> JSON:
        """Return the payload of an event; a large one is read from its store. See ``Ledger.payload``."""
        return self._ledger.payload(record)

    def events(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        conversation: str | None = None,
        event_ids: Sequence[str] | None = None,
        after: tuple[datetime, str] | None = None,
    ) -> Iterator[AuditRecord]:
        """Yield the records of events, the oldest first. Events whose payload was erased are skipped.

        Args:
            since: only events published at this time or later.
            until: only events published before this time.
            conversation: only events of one conversation: the id of any message in it, its correlation id, or its
                conversation id.
            event_ids: only these events.
            after: only events after this one: the time of its publish and its id.

        Raises:
            UnknownMessage: the ledger has no such conversation.
            InvalidMessage: a time has no time zone, or this is not a valid id.
        """
        conditions = [
            MessageRow.to_agent == NO_RECIPIENT,
            MessageRow.topic.is_not(None),
            *sent_between(MessageRow, since, until),
            *self._in_conversation(conversation),
            *([] if event_ids is None else [MessageRow.message_id.in_(event_ids)]),
        ]
        while True:
            page = self._read_page(conditions, after)
            yield from (record for record in page if record.erased_at is None)
            if len(page) < PAGE_SIZE:
                return
            after = page[-1].receipt.sent_at, page[-1].receipt.message_id

    def event_ids(self, message_ids: Sequence[str]) -> list[str]:
        """Return the ids of the events that messages deliver. The id of an event is the id of its record, too.

        Args:
            message_ids: ids of events, or of messages to subscribers.

        Raises:
            UnknownMessage: the ledger does not have one of them, or it is no event; the error names it.
        """
        for id_ in message_ids:
            check_id(id_, "message_id")
        columns = (MessageRow.message_id, MessageRow.to_agent, MessageRow.causation_id)
        query = select(*columns).where(MessageRow.message_id.in_(message_ids), MessageRow.topic.is_not(None))
        self._ledger.flush()
        with self._ledger.database.begin("look up events") as connection:
            # The cause of a message to a subscriber, also of a replayed one, is the record of the event.
            found = {
                row.message_id: row.message_id if row.to_agent == NO_RECIPIENT else str(row.causation_id)
                for row in connection.execute(query)
            }
        for id_ in message_ids:
            if id_ not in found:
                raise UnknownMessage(f"the ledger has no event {id_!r}: it was never published, or was purged")
        return list(dict.fromkeys(found[id_] for id_ in message_ids))

    def told(self, message_ids: Iterable[str]) -> set[str]:
        """Return the ids of those messages that the broker has confirmed, or that a worker has met."""
        query = select(MessageRow.message_id).where(MessageRow.message_id.in_(list(message_ids)))
        self._ledger.flush()
        with self._ledger.database.begin("look up published messages") as connection:
            return set(connection.scalars(query.where(exists().where(same_message(MessageEventRow)))))

    def waiting(self, target: HandlerName) -> int:
        """Return how many messages of a subscription are open.

        Args:
            target: the subscription's handler.
        """
        conditions = (
            OpenMessageRow.to_agent == target.agent,
            MessageRow.to_agent == target.agent,
            MessageRow.handler == target.handler,
        )
        query = select(func.count()).select_from(OpenMessageRow).join(MessageRow, same_message(OpenMessageRow))
        self._ledger.flush()
        with self._ledger.database.begin("count a subscription's messages") as connection:
            return int(connection.scalar(query.where(*conditions)) or 0)

    def statistics(self, since: datetime | None = None, until: datetime | None = None) -> list[TopicStatistics]:
        """Return how many events were published on each topic within a period, and what became of them.

        It reads all events of the period, and raises AuditUnavailable if that takes more than a minute.

        Args:
            since: only events published at this time or later; None: from the first one.
            until: only events published before this time; None: up to now.
        """
        in_period = [MessageRow.topic.is_not(None), *sent_between(MessageRow, since, until)]
        self._ledger.flush()
        with self._ledger.database.begin("count events", DEADLINE_SECONDS) as connection:
            sent = _count_sent(connection, in_period)
            progress = _count_progress(connection, in_period)
            waiting = _count_waiting(connection, in_period)
            now = now_in(connection)
        return _statistics(sent, progress, waiting, now)

    def _read_page(
        self, conditions: list[ColumnElement[bool]], after: tuple[datetime, str] | None
    ) -> list[AuditRecord]:
        query: Select[Any] = select(*message_columns(payloads=True)).where(*conditions)
        if after is not None:
            query = query.where(tuple_(MessageRow.sent_at, MessageRow.message_id) > after)
        query = query.order_by(MessageRow.sent_at, MessageRow.message_id).limit(PAGE_SIZE)
        self._ledger.flush()
        with self._ledger.database.begin("read events") as connection:
            force_index_scans(connection)
            return read_records(connection, query)

    def _in_conversation(self, id_: str | None) -> list[ColumnElement[bool]]:
        if id_ is None:
            return []
        check_id(id_, "conversation")
        columns = (MessageRow.message_id, MessageRow.correlation_id, MessageRow.conversation_id)
        queries = [select(MessageRow.conversation_id).where(column == id_) for column in columns]
        self._ledger.flush()
        with self._ledger.database.begin("look for a conversation") as connection:
            found = list(connection.scalars(union(*queries)))
        if not found:
            raise UnknownMessage(f"the ledger has no message, thread or conversation {id_!r}")
        return [MessageRow.conversation_id.in_(found)]


def _count_sent(connection: Connection, in_period: list[ColumnElement[bool]]) -> list[Any]:
    """Return the number of messages, and the newest time, by subscriber."""
    query = select(*_SUBSCRIBER, func.count(), func.max(MessageRow.sent_at)).where(*in_period)
    return list(connection.execute(query.group_by(*_SUBSCRIBER)))


def _count_progress(connection: Connection, in_period: list[ColumnElement[bool]]) -> list[Any]:
    """Return the number of messages with each event but SENT, by subscriber."""
    # Messages, not events: a message may be delivered several times.
    query = (
        select(*_SUBSCRIBER, MessageEventRow.event, func.count(MessageRow.message_id.distinct()))
        .join(MessageEventRow, same_message(MessageEventRow))
        .where(*in_period, MessageRow.to_agent != NO_RECIPIENT, MessageEventRow.event != MessageEvent.SENT.value)
    )
    return list(connection.execute(query.group_by(*_SUBSCRIBER, MessageEventRow.event)))


def _count_waiting(connection: Connection, in_period: list[ColumnElement[bool]]) -> list[Any]:
    """Return the number of open messages that were not begun, and the oldest time, by subscriber."""
    deliveries = select(MessageEventRow.message_id).where(
        same_message(MessageEventRow, OpenMessageRow), MessageEventRow.event == MessageEvent.DELIVERED.value
    )
    query = (
        select(*_SUBSCRIBER, func.count(), func.min(MessageRow.sent_at))
        .select_from(OpenMessageRow)
        .join(MessageRow, same_message(OpenMessageRow))
        .where(*in_period, ~deliveries.exists())
    )
    return list(connection.execute(query.group_by(*_SUBSCRIBER)))


def _statistics(
    sent: Iterable[Any], progress: Iterable[Any], waiting: Iterable[Any], now: datetime
) -> list[TopicStatistics]:
    """Combine the counts by topic, agent and handler."""
    events = {(topic, agent, handler, event): number for topic, agent, handler, event, number in progress}
    open_ = {(topic, agent, handler): (number, oldest) for topic, agent, handler, number, oldest in waiting}
    failures = [event for event in MessageEvent if event.terminal and event is not MessageEvent.HANDLED]
    published: dict[str, tuple[int, datetime]] = {}
    subscribers: dict[str, list[SubscriberStatistics]] = {}
    for topic, agent, handler, number, newest in sorted(sent):
        of_topic = subscribers.setdefault(topic, [])
        if agent == NO_RECIPIENT:
            published[topic] = number, newest
            continue
        key = topic, agent, handler
        count, oldest = open_.get(key, (0, None))
        of_topic.append(
            SubscriberStatistics(
                topic=topic,
                subscriber=f"{agent}.{handler.removeprefix(EVENT_HANDLERS)}",
                messages=number,
                delivered=events.get((*key, MessageEvent.DELIVERED.value), 0),
                handled=events.get((*key, MessageEvent.HANDLED.value), 0),
                failed=sum(events.get((*key, event.value), 0) for event in failures),
                waiting=count,
                lag_seconds=max((now - oldest).total_seconds(), 0.0) if oldest else None,
            )
        )
    return [
        TopicStatistics(
            topic=topic,
            published=published[topic][0] if topic in published else 0,
            last_at=published[topic][1] if topic in published else None,
            subscribers=tuple(of_topic),
        )
        for topic, of_topic in subscribers.items()
    ]
