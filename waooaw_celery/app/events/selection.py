"""Selects the events of a replay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.messages.topics.patterns import ANY_WORDS, check_pattern, matches
from waooaw_celery.messages.validation import JSON
from waooaw_celery.store.subscriptions import Subscription

if TYPE_CHECKING:
    from waooaw_celery.ledger.events.event_log import EventLog
    from waooaw_celery.ledger.read.records import AuditRecord

#: Most ids that one replay takes.
MAX_IDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The events that a replay sends, of those that match the subscription.

    Attributes:
        since: only events that were published at this time or later.
        until: only events that were published before this time.
        conversation: only events of this conversation.
        event_ids: only these events.
        topic: only events on topics that match this pattern.
        where: only events whose payload matches this filter.
        limit: at most so many events, the oldest ones.
    """

    since: datetime | None
    until: datetime
    conversation: str | None = None
    event_ids: tuple[str, ...] | None = None
    topic: str = ANY_WORDS
    where: Filter | None = None
    limit: int | None = None

    @classmethod
    def of(
        cls,
        log: EventLog,
        *,
        since: datetime | None,
        until: datetime,
        conversation: str | None,
        message_ids: Sequence[str] | None,
        topic: str,
        where: Mapping[str, JSON] | None,
        limit: int | None,
    ) -> Selection:
        """Return a selection; see ``EventBus.replay`` for the arguments.

        Raises:
            InvalidMessage: nothing bounds it, or an argument is invalid.
            UnknownMessage: the ledger does not have one of the messages.
        """
        if since is None and conversation is None and message_ids is None:
            raise InvalidMessage(
                "replay() has neither since nor conversation nor message_ids: give at least one of them"
            )
        for time in (since, until):
            if time is not None and (not isinstance(time, datetime) or time.tzinfo is None):
                raise InvalidMessage("since and until must be aware datetimes, such as datetime.now(UTC)")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise InvalidMessage(f"limit must be a whole number of at least 1, not {limit!r:.80}")
        if message_ids is not None and (isinstance(message_ids, str) or not 0 < len(message_ids) <= MAX_IDS):
            raise InvalidMessage(f"message_ids must be a list of 1 to {MAX_IDS} ids")
        return cls(
            since=since,
            until=until,
            conversation=conversation,
            event_ids=None if message_ids is None else tuple(log.event_ids(list(message_ids))),
            topic=check_pattern(topic),
            where=None if where is None else Filter.of(where),
            limit=limit,
        )

    def events(
        self,
        log: EventLog,
        subscription: Subscription,
        after: tuple[datetime, str] | None = None,
        sent: int = 0,
        on_read: Callable[[], None] = lambda: None,
    ) -> Iterator[AuditRecord]:
        """Yield the records of the selected events that match a subscription, the oldest first.

        Args:
            log: the event log.
            subscription: the subscription.
            after: only events after this one: the time of its publish and its id.
            sent: how many events before it count towards the limit.
            on_read: called for each event that is read, whether it is selected or not.

        Raises:
            UnknownMessage: the ledger has no such conversation.
        """
        read = log.events(self.since, self.until, self.conversation, self.event_ids, after)
        found = (record for record in _each(read, on_read) if self._has(log, record, subscription))
        return islice(found, None if self.limit is None else max(self.limit - sent, 0))

    def _has(self, log: EventLog, record: AuditRecord, subscription: Subscription) -> bool:
        topic = record.receipt.handler
        if not matches(self.topic, topic):
            return False
        is_filtered = self.where is not None or subscription.where is not None
        # A large payload is read from its store only where its contents decide.
        payload = log.payload(record) if is_filtered else record.payload
        return subscription.wants(topic, payload) and (self.where is None or self.where.fits(payload))

    def to_json(self) -> dict[str, JSON]:
        """Return the selection as JSON, without what selects all events."""
        fields: dict[str, Any] = {
            "since": self.since and self.since.isoformat(),
            "until": self.until.isoformat(),
            "conversation": self.conversation,
            "event_ids": self.event_ids and list(self.event_ids),
            "topic": self.topic,
            "where": self.where and dict(self.where.where),
            "limit": self.limit,
        }
        return {name: value for name, value in fields.items() if value is not None}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the selection that ``to_json`` wrote."""
        since, event_ids, where = (fields.get(name) for name in ("since", "event_ids", "where"))
        return cls(
            since=datetime.fromisoformat(since) if since else None,
            until=datetime.fromisoformat(fields["until"]),
            conversation=fields.get("conversation"),
            event_ids=tuple(event_ids) if event_ids else None,
            topic=fields["topic"],
            where=Filter(where) if where else None,
            limit=fields.get("limit"),
        )


def _each(records: Iterable[AuditRecord], on_read: Callable[[], None]) -> Iterator[AuditRecord]:
    for record in records:
        on_read()
        yield record
