"""The audit trail: queries of the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

from waooaw_celery.broker.application import refuse_app
from waooaw_celery.errors import InvalidMessage, UnknownMessage
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.models import MessageRow, RefusalRow
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.read.conversations import read_consequences, read_conversation, read_history
from waooaw_celery.ledger.read.flows import Flows, read_flows
from waooaw_celery.ledger.read.reader import force_index_scans, read_record, read_records
from waooaw_celery.ledger.read.records import AuditRecord, Page, Refusal, Statistics
from waooaw_celery.ledger.read.scan import KeysetScan
from waooaw_celery.ledger.read.statistics import read_statistics
from waooaw_celery.ledger.read.topics import filter_by_pattern, has_wildcard
from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.publish_options import PublishOptions
from waooaw_celery.messages.receipt import DeliveryReceipt, MessageEvent, MessageFact
from waooaw_celery.messages.topics.patterns import check_pattern
from waooaw_celery.messages.validation import JSON, check_agent_name, check_id, check_searchable

#: Most messages on one page of a query.
MAX_PAGE_SIZE = 1000
#: Seconds that statistics may take: unlike other queries, they read every message of their period.
STATISTICS_DEADLINE_SECONDS = 60.0
#: Most days that a history may go back: a hundred years.
MAX_DAYS = 36_500
#: Most messages that ``flows`` counts.
MAX_FLOWS = 10_000


class MessageAuditTrail:
    """The queries of the ledger.

    Every method raises AuditUnavailable if the database does not answer.

    Example:
        >>> trail = MessageAuditTrail(app.ledger)
        >>> trail.query(to_agent="writer", status=MessageStatus.FAILED).records
        >>> trail.conversation(receipt.message_id)

    Args:
        ledger: the ledger, such as ``app.ledger``.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = refuse_app(ledger, "MessageAuditTrail", "ledger")

    def query(
        self,
        *,
        from_agent: str | None = None,
        to_agent: str | None = None,
        message_type: MessageType | None = None,
        status: MessageStatus | None = None,
        priority: Priority | None = None,
        correlation_id: str | None = None,
        conversation_id: str | None = None,
        handler: str | None = None,
        identity: str | None = None,
        topic: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        text: str | None = None,
        limit: int = 100,
        after: tuple[datetime, str] | None = None,
        payloads: bool = True,
    ) -> Page:
        """Return the messages that match all filters, newest first.

        Filters without an index are type, handler, identity, priority, text, a status that is not final, a
        pattern of topics that matches more than 20 topics or stands beside another filter, and all but the first
        of several filters. With such a filter, a page scans at most 5,000 messages: it may hold fewer messages
        than the limit. Pass its ``after`` to continue.

        Args:
            from_agent: the sender.
            to_agent: the recipient.
            message_type: the type.
            status: the status.
            priority: the priority.
            correlation_id: the correlation id.
            conversation_id: the conversation id.
            handler: the name of the handler, such as ``command``, a method's name or ``event.<subscription>``.
            identity: who the sender said it is.
            topic: the topic of events, or a pattern as subscriptions have it, such as ``order.*``: matches their
                records and the messages to their subscribers.
            since: only messages sent at this time or later.
            until: only messages sent before this time.
            text: a text that the payload, as JSON text, contains, in any case.
            limit: how many messages at most, 1 to 1000.
            after: continue after this page: its ``after``.
            payloads: whether to read the payloads, which may have megabytes. Without them, ``record.payload``
                raises PayloadNotLoaded; ``receipt`` reads the payload of one message.

        Returns:
            The page; its ``after`` is None at the end.

        Raises:
            InvalidMessage: a name or id is not valid, a time has no time zone, or the limit is out of range.

        Example:
            >>> page = trail.query(from_agent="planner", limit=50)
            >>> page = trail.query(from_agent="planner", limit=50, after=page.after)
        """
        _check_limit(limit)
        for agent, argument in ((from_agent, "from_agent"), (to_agent, "to_agent")):
            if agent is not None:
                check_agent_name(agent, argument)
        for id_, argument in ((correlation_id, "correlation_id"), (conversation_id, "conversation_id")):
            if id_ is not None:
                check_id(id_, argument)
        for wanted, argument in ((handler, "handler"), (identity, "identity")):
            if wanted is not None:
                check_searchable(wanted, argument)
        if after is not None:
            check_searchable(after[1], "after")
        scan = KeysetScan(since, until, after)
        pattern = None
        if topic is not None and has_wildcard(check_pattern(topic)):
            topic, pattern = None, topic
        # The first filter with a value selects the index: the most selective come first. Few messages are open,
        # while most messages have one of the final statuses.
        is_final = status is not None and MessageStatus(status).final
        scan.seek(MessageRow.correlation_id, correlation_id)
        scan.seek(MessageRow.conversation_id, conversation_id)
        scan.seek(MessageRow.topic, topic)
        if status is not None and not is_final:
            scan.seek_status(MessageStatus(status))
        scan.seek(MessageRow.to_agent, to_agent)
        scan.seek(MessageRow.from_agent, from_agent)
        if status is not None and is_final:
            scan.seek_status(MessageStatus(status))
        scan.filter(MessageRow.message_type, message_type and MessageType(message_type).value)
        scan.filter(MessageRow.priority, None if priority is None else Priority.of(priority).rank)
        scan.filter(MessageRow.handler, handler)
        scan.filter(MessageRow.identity, identity)
        scan.filter_text(text)
        with self._reading("query the ledger") as connection:
            if pattern is not None:
                filter_by_pattern(scan, connection, pattern)
            return _read_page(connection, scan, limit, payloads)

    def conversation(self, id_: str, *, payloads: bool = True) -> list[AuditRecord]:
        """Return all messages of a conversation in causal order: each one after the message that caused it.

        Args:
            id_: the id of any message in it, its correlation id, or its conversation id.
            payloads: whether to read the payloads, as for ``query``.

        Raises:
            UnknownMessage: the ledger has no message with this id.
            InvalidMessage: this is not a valid id.
        """
        check_id(id_, "id")
        with self._reading("read a conversation") as connection:
            records = read_conversation(connection, id_, payloads=payloads)
        if not records:
            raise UnknownMessage(f"the ledger has no message, thread or conversation {id_!r}")
        return records

    def consequences(self, record: AuditRecord, *, limit: int = 100) -> list[AuditRecord]:
        """Return the messages that the handler of a message sent, the oldest first, without their payloads.

        A message that a handler sent into another conversation is not among them.

        Args:
            record: the message, such as one of ``receipt``.
            limit: how many messages at most, 1 to 1000.

        Raises:
            InvalidMessage: the limit is out of range.
        """
        _check_limit(limit)
        with self._reading("read what a message caused") as connection:
            return read_consequences(connection, record, limit)

    def flows(self, seconds: float = 300.0, *, limit: int = 2000) -> Flows:
        """Return who sent to whom lately, and how many of these messages failed.

        Args:
            seconds: only messages of the last seconds.
            limit: how many messages are counted, the newest ones, 1 to 10,000.

        Raises:
            InvalidMessage: the seconds or the limit are out of range.

        Example:
            >>> flows = trail.flows(60)
            >>> [(each.from_agent, each.to_agent, each.messages / flows.seconds) for each in flows.flows]
            [('planner', 'writer', 12.5)]
        """
        if not 1 <= limit <= MAX_FLOWS:
            raise InvalidMessage(f"limit must be 1 to {MAX_FLOWS}, not {limit}")
        if not 0 < seconds <= MAX_DAYS * 86_400:
            raise InvalidMessage(f"seconds must be more than 0 and at most {MAX_DAYS} days, not {seconds}")
        with self._reading("count who sends to whom") as connection:
            now = now_in(connection)
            return read_flows(connection, now - timedelta(seconds=seconds), now, limit)

    def history(
        self, agent: str, days: float = 7, *, limit: int = 100, payloads: bool = True
    ) -> list[AuditRecord]:
        """Return what an agent sent and received in the last days, newest first.

        Args:
            agent: the agent's name.
            days: how many days to go back, at most 36,500.
            limit: how many messages at most, 1 to 1000.
            payloads: whether to read the payloads, as for ``query``.

        Raises:
            InvalidMessage: this is not a valid agent name, or the days or the limit are out of range.
        """
        check_agent_name(agent)
        _check_limit(limit)
        if not 0 < days <= MAX_DAYS:
            raise InvalidMessage(f"days must be more than 0 and at most {MAX_DAYS}, not {days}")
        with self._reading(f"read the history of {agent!r}") as connection:
            since = now_in(connection) - timedelta(days=days)
            return read_history(connection, agent, since, limit, payloads=payloads)

    def refusals(
        self, agent: str | None = None, *, since: datetime | None = None, limit: int = 100
    ) -> list[Refusal]:
        """Return how many messages rate limits refused, by agent, rule and minute, newest first.

        Args:
            agent: only messages of this agent.
            since: only refusals in the minute of this time or later.
            limit: how many rows at most, 1 to 1000.

        Raises:
            InvalidMessage: this is not a valid agent name, or the limit is out of range.
        """
        _check_limit(limit)
        number = func.sum(RefusalRow.count).label("number")
        keys = (RefusalRow.minute, RefusalRow.agent, RefusalRow.rule)
        query = select(*keys, number).group_by(*keys).order_by(keys[0].desc(), *keys[1:])
        if agent is not None:
            query = query.where(RefusalRow.agent == check_agent_name(agent))
        if since is not None:
            query = query.where(RefusalRow.minute >= since.replace(second=0, microsecond=0))
        with self._reading("read refusals") as connection:
            return [
                Refusal(agent=row.agent, rule=row.rule, minute=row.minute, count=int(row.number))
                for row in connection.execute(query.limit(limit))
            ]

    def statistics(
        self, since: datetime | None = None, until: datetime | None = None, *, top: int = 5
    ) -> Statistics:
        """Return counts, durations and the error rate of the messages that were sent within a period.

        It reads all messages of the period, and raises AuditUnavailable if that takes more than a minute.

        Args:
            since: only messages sent at this time or later; None: from the first one.
            until: only messages sent before this time; None: up to now.
            top: how many senders and receivers to return.

        Raises:
            InvalidMessage: a time has no time zone.
        """
        with self._reading("compute statistics", STATISTICS_DEADLINE_SECONDS) as connection:
            return read_statistics(connection, since, until, top)

    def receipt(self, message_id: str) -> AuditRecord:
        """Return the record of a message with its payload and all its events.

        Raises:
            UnknownMessage: the ledger does not have the message.
            InvalidMessage: this is not a valid id.
        """
        return self._record(message_id, payloads=True)

    def payload(self, message_id: str) -> JSON:
        """Return the payload of a message; a large one that travelled by reference is read from its store.

        Returns:
            None if it was erased.

        Raises:
            UnknownMessage: the ledger does not have the message.
            PayloadMissing: the store does not have the payload. PayloadAltered: it has another one.
            ReferenceStoreUnavailable: the store does not answer.

        Example:
            >>> trail.payload(message_id)["pages"][0]
            'The first page'
        """
        return self._ledger.payload(self._record(message_id, payloads=True))

    def log_message(self, message: Message) -> bool:
        """Record a message that was sent by other means; sending with this package records it by itself.

        The recovery never publishes such a message again, because its publish options are unknown. Its end is
        what you record with ``update_status``, or its expiry; but a purge removes it after its retention also if
        it has not ended, because nobody else reports its end.

        Returns:
            False if the ledger had the message already.
        """
        options = {message.message_id: PublishOptions(repeatable=False)}
        recorded = self._ledger.begin_recording([(message, message.message_type.value)], publish_options=options)
        if not recorded():
            return False
        self._ledger.note(MessageFact(message_id=message.message_id, event=MessageEvent.LOGGED, message=message))
        return True

    def update_status(self, message_id: str, status: MessageStatus, error: str | None = None) -> DeliveryReceipt:
        """Record a status of a message that was handled by other means; workers record it by themselves.

        A status that the ledger has already is not recorded again, and a message that has ended does not change.

        Args:
            message_id: the id of the message.
            status: the new status.
            error: the error, for FAILED.

        Returns:
            The receipt of the message afterwards.

        Raises:
            UnknownMessage: the ledger does not have the message.
        """
        record = self._record(message_id, payloads=False)
        new = MessageStatus(status)
        recorded = {MessageStatus.PENDING.value, *(event.event for event in record.events)}
        if not record.receipt.status.final and new.value not in recorded:
            attempt = record.receipt.attempts + (new is MessageStatus.DELIVERED)
            fact = MessageFact(message_id=message_id, event=MessageEvent(new.value), attempt=attempt, error=error)
            self._ledger.note(fact)
        return self._ledger.get(message_id)

    def _record(self, message_id: str, *, payloads: bool) -> AuditRecord:
        check_id(message_id, "message_id")
        with self._reading("read a message") as connection:
            record = read_record(connection, message_id, payloads=payloads)
        if record is None:
            raise UnknownMessage(f"the ledger has no message {message_id!r}: it was never sent, or was purged")
        return record

    @contextmanager
    def _reading(self, operation: str, deadline_seconds: float | None = None) -> Iterator[Connection]:
        """Open a transaction that sees everything that this process has recorded."""
        self._ledger.flush()
        with self._ledger.database.begin(operation, deadline_seconds) as connection:
            yield connection


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_PAGE_SIZE:
        raise InvalidMessage(f"limit must be 1 to {MAX_PAGE_SIZE}, not {limit}")


def _read_page(connection: Connection, scan: KeysetScan, limit: int, payloads: bool) -> Page:
    if scan.may_end_early:
        force_index_scans(connection)
    records = read_records(connection, scan.query(limit + 1, payloads=payloads))
    if len(records) > limit:
        last = records[limit - 1].receipt
        return Page(records=records[:limit], after=(last.sent_at, last.message_id))
    end = connection.execute(scan.last_scanned()).first() if scan.may_end_early else None
    return Page(records=records, after=(end.sent_at, end.message_id) if end else None)
