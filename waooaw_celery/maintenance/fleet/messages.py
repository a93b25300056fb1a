"""The messages in the ledger: open ones, how messages ended lately, what was recovered, lost or refused.

Each query is bounded, however large the ledger is:

- Open messages are in a table of their own, which has no row of a message that has ended, or only until the next
  sweep. The status of the oldest ``MAX_OPEN`` is looked up along the primary key of the events.
- The events of the last minutes are read along the index ``waooaw_message_events_event (event, sent_at,
  message_id)``. It has no time of the event, so the newest ``MAX_EVENTS`` entries of each status that were sent
  within a day (handled ones: within an hour) are read backwards, and those are counted whose event is recent. On
  PostgreSQL this is a merge of one backward index scan for each partition; an old partition has no entry in the
  range and costs one look-up.
- Refusals are read along the index of their minute.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, exists, func, select

from waooaw_celery.app.app import AgentApp
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow, OpenMessageRow, RefusalRow
from waooaw_celery.ledger.read.reader import force_index_scans
from waooaw_celery.ledger.read.scan import PROGRESS, progress, same_message
from waooaw_celery.maintenance.fleet import metrics
from waooaw_celery.maintenance.fleet.queues import MAX_SENDERS
from waooaw_celery.maintenance.fleet.samples import INVALID, OTHER, Samples, agent_labels, largest, sender_label
from waooaw_celery.messages.enums import FINAL, RECORDS, MessageStatus, Priority
from waooaw_celery.messages.receipt import MessageEvent

#: Open messages whose status is read, and events of each status.
MAX_OPEN, MAX_EVENTS = 20_000, 100_000
#: Oldest open messages that are read for the age of queues.
MAX_OLDEST = 1000
#: Agents whose rate limits have series.
MAX_REFUSED = 20
#: The status of open messages that are not read.
NOT_READ = "not_read"
#: How a message that failed as lost begins its error: see ``ledger/open_messages.py`` and ``ledger/read/lost.py``.
_LOST = "lost:%"
#: Handled messages are counted if they were sent within this time, others within a day or twice ``lost_seconds``.
_HANDLED_WITHIN, _OTHERS_WITHIN = timedelta(hours=1), timedelta(days=1)
_RECENT = timedelta(seconds=metrics.RECENT_SECONDS)


class MessageReader:
    """Reads the messages of an application's ledger.

    Args:
        app: the application, with a ledger.
    """

    def __init__(self, app: AgentApp) -> None:
        self._app = app
        self._within = max(_OTHERS_WITHIN, timedelta(seconds=2 * app.settings.lost_seconds))

    def read(self) -> Samples:
        """Return what the ledger has.

        Raises:
            AuditUnavailable: the database does not answer.
        """
        samples = Samples()
        with self._app.database.begin("read the messages for the metrics") as connection:
            force_index_scans(connection)
            now = now_in(connection)
            self._read_recent(samples, connection, now)
            _read_refusals(samples, connection, now)
        with self._app.database.begin("read the open messages for the metrics") as connection:
            _read_open(samples, connection, now)
            _read_senders(samples, connection)
            if self._app.driver != "redis":  # whose lists show it without a ledger
                _read_oldest(samples, connection, now)
        return samples

    def _read_recent(self, samples: Samples, connection: Connection, now: datetime) -> None:
        for status in sorted(FINAL - RECORDS):
            within = _HANDLED_WITHIN if status is MessageStatus.HANDLED else self._within
            number = _recent(connection, MessageEvent(status.value), now, within)
            samples.set(metrics.RECENT_MESSAGES, number, status.value)
        recovered = _recent(connection, MessageEvent.RECOVERED, now, self._within)
        samples.set(metrics.RECOVERED_MESSAGES, recovered)
        lost = _recent(connection, MessageEvent.FAILED, now, self._within, only_lost=True)
        samples.set(metrics.LOST_MESSAGES, lost)


def _recent(
    connection: Connection, event: MessageEvent, now: datetime, within: timedelta, *, only_lost: bool = False
) -> int:
    """Return how often an event was recorded lately; the module's text explains the plan."""
    newest = (
        select(MessageEventRow.at, MessageEventRow.error)
        .where(MessageEventRow.event == event.value, MessageEventRow.sent_at >= now - within)
        .order_by(MessageEventRow.sent_at.desc(), MessageEventRow.message_id.desc())
        .limit(MAX_EVENTS)
        .subquery()
    )
    conditions: list[ColumnElement[bool]] = [newest.c.at >= now - _RECENT]
    if only_lost:
        conditions.append(newest.c.error.like(_LOST))
    return connection.scalar(select(func.count()).select_from(newest).where(*conditions)) or 0


def _read_refusals(samples: Samples, connection: Connection, now: datetime) -> None:
    query = select(RefusalRow.agent, func.sum(RefusalRow.count)).where(RefusalRow.minute >= now - _RECENT)
    counts: Counter[str] = Counter()
    for agent, number in connection.execute(query.group_by(RefusalRow.agent)):
        # The row of many agents together has no agent's name.
        label = sender_label(agent)
        counts[OTHER if label == INVALID else label] += int(number)
    for agent, value in largest(counts, MAX_REFUSED).items():
        samples.add(metrics.REFUSALS, value, agent)


def _read_open(samples: Samples, connection: Connection, now: datetime) -> None:
    is_logged = exists().where(
        same_message(MessageEventRow, OpenMessageRow), MessageEventRow.event == MessageEvent.LOGGED.value
    )
    oldest = (
        select(OpenMessageRow.sent_at, progress(OpenMessageRow).label("progress"), is_logged.label("is_logged"))
        .select_from(OpenMessageRow)
        .order_by(OpenMessageRow.sent_at, OpenMessageRow.message_id)
        .limit(MAX_OPEN)
        .subquery()
    )
    # What was only logged has no publisher and no worker, and may never end.
    is_open = (oldest.c.progress < len(PROGRESS)) & ~oldest.c.is_logged
    query = select(oldest.c.progress, func.count(), func.min(oldest.c.sent_at)).where(is_open)
    first = now
    counts = dict.fromkeys(PROGRESS, 0)
    for rank, number, sent_at in connection.execute(query.group_by(oldest.c.progress)):
        counts[PROGRESS[rank]] = number
        first = min(first, sent_at)
    for status, number in counts.items():
        samples.set(metrics.OPEN_MESSAGES, number, status.value)
    total = connection.scalar(select(func.count()).select_from(OpenMessageRow)) or 0
    samples.set(metrics.OPEN_MESSAGES, max(total - MAX_OPEN, 0), NOT_READ)
    samples.set(metrics.OLDEST_OPEN, (now - first).total_seconds())


def _read_senders(samples: Samples, connection: Connection) -> None:
    """Add the senders of open messages: two queries, so that not all pairs are sent."""
    number = func.count().label("number")
    to, sender = OpenMessageRow.to_agent, OpenMessageRow.from_agent
    totals = {agent: count for agent, count in connection.execute(select(to, number).group_by(to)) if agent}
    label = agent_labels(totals)
    pairs = select(to, sender, number).where(to != "").group_by(to, sender)
    shown: Counter[str] = Counter()
    for agent, from_agent, count in connection.execute(
        pairs.order_by(number.desc(), to, sender).limit(MAX_SENDERS)
    ):
        samples.add(metrics.QUEUE_SENDERS, count, label(agent), sender_label(from_agent))
        shown[agent] += count
    for agent, count in totals.items():
        if count > shown[agent]:
            samples.add(metrics.QUEUE_SENDERS, count - shown[agent], label(agent), OTHER)


def _read_oldest(samples: Samples, connection: Connection, now: datetime) -> None:
    """Add the age of the oldest messages that no worker has begun, by agent and priority."""
    columns: tuple[Any, ...] = (OpenMessageRow.to_agent, OpenMessageRow.sent_at, MessageRow.priority)
    query = (
        select(*columns, progress(OpenMessageRow).label("progress"))
        .join(MessageRow, same_message(MessageRow, OpenMessageRow))
        .order_by(OpenMessageRow.sent_at, OpenMessageRow.message_id)
        .limit(MAX_OLDEST)
    )
    rows = [row for row in connection.execute(query) if row.progress < len(PROGRESS) - 1]
    label = agent_labels({row.to_agent for row in rows})
    for row in rows:
        age = max((now - row.sent_at).total_seconds(), 0.0)
        priority = Priority.of_rank(row.priority).name.lower()
        samples.highest(metrics.QUEUE_OLDEST, age, label(row.to_agent), priority)
