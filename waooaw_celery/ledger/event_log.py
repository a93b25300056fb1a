"""The published events in the ledger: read again in order, and counted by topic and subscriber."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, func, select, tuple_, union

from waooaw_celery.errors import UnknownMessage
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow, OpenMessageRow
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.read.reader import follow_indexes, read_records
from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.ledger.read.scan import between, equals
from waooaw_celery.messages.message import NOBODY
from waooaw_celery.messages.queues import EVENT_HANDLERS, HandlerName
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.messages.validation import check_id

#: Events that are read at once.
PAGE = 500
#: Seconds that counting may take, which looks at every event of its time.
DEADLINE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberStatistics:
    """What became of the events of a topic for one subscriber.

    Attributes:
        topic: of the events.
        subscriber: ``<agent>.<name of its subscription>``.
        messages: how many it was sent, replays included.
        delivered: how many its worker has begun.
        handled: how many it has handled.
        failed: how many ended otherwise: failed, expired, dead, cancelled.
        waiting: how many no worker has begun, and none of these ends has come to.
        lag_seconds: how long the oldest of those has been waiting; None without any.
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
    """What was published on a topic, and what became of it.

    Attributes:
        topic: of the events.
        published: how many events, replays not counted.
        last_at: when the newest was published, or None when only replays are of that time.
        subscribers: what became of them for each subscriber.
    """

    topic: str
    published: int
    last_at: datetime | None
    subscribers: tuple[SubscriberStatistics, ...]


class EventLog:
    """The events in the ledger.

    Every method raises AuditUnavailable when the database does not answer.

    Args:
        ledger: the ledger, such as ``app.ledger``.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def events(
        self, since: datetime | None = None, until: datetime | None = None, conversation: str | None = None
    ) -> Iterator[AuditRecord]:
        """Give the records of events, the oldest first; those whose payload was erased are left out.

        Args:
            since: published at this moment or later.
            until: published before this moment.
            conversation: of the conversation that this id belongs to: of a message, a thread or the conversation.

        Raises:
            UnknownMessage: the ledger has no such conversation.
            InvalidMessage: a moment has no time zone, or this cannot be an id.
        """
        which = [MessageRow.to_agent == NOBODY, MessageRow.topic.is_not(None), *between(MessageRow, since, until)]
        which += self._conversation(conversation)
        after: tuple[datetime, str] | None = None
        while True:
            page = self._page(which, after)
            yield from (record for record in page if record.erased_at is None)
            if len(page) < PAGE:
                return
            after = page[-1].receipt.sent_at, page[-1].receipt.message_id

    def told(self, message_ids: Iterable[str]) -> set[str]:
        """Return those ids whose message the broker has had; not those of which it never confirmed that."""
        query = select(MessageRow.message_id).where(MessageRow.message_id.in_(list(message_ids)))
        self._ledger.flush()
        with self._ledger.database.begin("look for messages") as connection:
            return set(connection.scalars(query.where(exists().where(equals(MessageEventRow)))))

    def waiting(self, target: HandlerName) -> int:
        """Return how many messages of a subscription have not ended."""
        mine = (MessageRow.to_agent == target.agent, MessageRow.handler == target.handler)
        self._ledger.flush()
        with self._ledger.database.begin("count a subscription's messages") as connection:
            open_ = select(func.count()).select_from(OpenMessageRow).join(MessageRow, equals(OpenMessageRow))
            return int(connection.scalar(open_.where(OpenMessageRow.to_agent == target.agent, *mine)) or 0)

    def statistics(self, since: datetime | None = None, until: datetime | None = None) -> list[TopicStatistics]:
        """Return what was published on each topic in a stretch of time, and what became of it.

        It looks at all events of that time; AuditUnavailable is raised after a minute.
        """
        when = [MessageRow.topic.is_not(None), *between(MessageRow, since, until)]
        subscriber = (MessageRow.topic, MessageRow.to_agent, MessageRow.handler)
        self._ledger.flush()
        with self._ledger.database.begin("count events", DEADLINE_SECONDS) as connection:
            said = connection.execute(
                select(*subscriber, func.count(), func.max(MessageRow.sent_at)).where(*when).group_by(*subscriber)
            ).all()
            told = connection.execute(
                # An attempt of which several workers told, or that began again, counts once.
                select(*subscriber, MessageEventRow.event, func.count(MessageRow.message_id.distinct()))
                .join(MessageEventRow, equals(MessageEventRow))
                .where(*when, MessageRow.to_agent != NOBODY, MessageEventRow.event != MessageEvent.SENT.value)
                .group_by(*subscriber, MessageEventRow.event)
            ).all()
            begun = select(MessageEventRow.message_id).where(
                equals(MessageEventRow, OpenMessageRow), MessageEventRow.event == MessageEvent.DELIVERED.value
            )
            waits = connection.execute(
                select(*subscriber, func.count(), func.min(MessageRow.sent_at))
                .select_from(OpenMessageRow)
                .join(MessageRow, equals(OpenMessageRow))
                .where(*when, ~begun.exists())
                .group_by(*subscriber)
            ).all()
            now = now_in(connection)
        return _statistics(said, told, waits, now)

    def _page(self, which: list[ColumnElement[bool]], after: tuple[datetime, str] | None) -> list[AuditRecord]:
        query: Select[Any] = select(MessageRow.__table__).where(*which)
        if after is not None:
            query = query.where(tuple_(MessageRow.sent_at, MessageRow.message_id) > after)
        self._ledger.flush()
        with self._ledger.database.begin("read events") as connection:
            follow_indexes(connection)
            return read_records(connection, query.order_by(MessageRow.sent_at, MessageRow.message_id).limit(PAGE))

    def _conversation(self, id_: str | None) -> list[ColumnElement[bool]]:
        if id_ is None:
            return []
        check_id(id_, "conversation")
        columns = (MessageRow.message_id, MessageRow.correlation_id, MessageRow.conversation_id)
        self._ledger.flush()
        with self._ledger.database.begin("look for a conversation") as connection:
            named = [select(MessageRow.conversation_id).where(column == id_) for column in columns]
            found = list(connection.scalars(union(*named)))
        if not found:
            raise UnknownMessage(f"the ledger has no message, thread or conversation {id_!r}")
        return [MessageRow.conversation_id.in_(found)]


def _statistics(
    said: Iterable[Any], told: Iterable[Any], waits: Iterable[Any], now: datetime
) -> list[TopicStatistics]:
    """Put counts by topic, agent and handler together."""
    ends = {(topic, agent, handler, event): number for topic, agent, handler, event, number in told}
    waiting = {(topic, agent, handler): (number, oldest) for topic, agent, handler, number, oldest in waits}
    published: dict[str, tuple[int, datetime]] = {}
    subscribers: dict[str, list[SubscriberStatistics]] = {}
    for topic, agent, handler, number, last in sorted(said):
        mine = subscribers.setdefault(topic, [])
        if agent == NOBODY:
            published[topic] = number, last
            continue
        key = topic, agent, handler
        count, oldest = waiting.get(key, (0, None))
        failed = (event for event in MessageEvent if event.terminal and event is not MessageEvent.HANDLED)
        mine.append(
            SubscriberStatistics(
                topic=topic,
                subscriber=f"{agent}.{handler.removeprefix(EVENT_HANDLERS)}",
                messages=number,
                delivered=ends.get((*key, MessageEvent.DELIVERED.value), 0),
                handled=ends.get((*key, MessageEvent.HANDLED.value), 0),
                failed=sum(ends.get((*key, event.value), 0) for event in failed),
                waiting=count,
                lag_seconds=max((now - oldest).total_seconds(), 0.0) if oldest else None,
            )
        )
    return [
        TopicStatistics(
            topic=topic,
            published=published[topic][0] if topic in published else 0,
            last_at=published[topic][1] if topic in published else None,
            subscribers=tuple(mine),
        )
        for topic, mine in subscribers.items()
    ]
