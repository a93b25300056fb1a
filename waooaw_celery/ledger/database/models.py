"""The tables of the ledger.

Rows of messages and of their events are only added. A message has no status column: its status follows from its
events.

On PostgreSQL, `waooaw_messages` and `waooaw_message_events` are partitioned by the month of `retain_until`, so
that a purge can drop whole partitions. PostgreSQL requires the partition key in every unique key. A message and
its events have the same `retain_until`, and it is part of each of their keys.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Index, String, false, func, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from waooaw_celery.ledger.database.column_types import JsonText, UtcDateTime


class Base(DeclarativeBase):
    """The base class of all tables of the ledger."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        datetime: UtcDateTime(),
        # JSON, not JSONB: it stores the text unchanged, and accepts every string that JSON can express.
        Any: JSON(),
        str: String(),
    }


class IdentityRow(Base):
    """The one row with the ledger's id, which travels with each message that the ledger records."""

    __tablename__ = "waooaw_identity"

    id: Mapped[str] = mapped_column(primary_key=True)


class AgentRow(Base):
    """An agent that was declared at least once."""

    __tablename__ = "waooaw_agents"

    name: Mapped[str] = mapped_column(primary_key=True)
    handlers: Mapped[Any]
    capabilities: Mapped[Any]
    declared_at: Mapped[datetime]
    last_seen: Mapped[datetime]
    #: What an operator has ordered about it, such as to drain it. NULL: nothing.
    agent_order: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))


class WorkerRow(Base):
    """A worker of an agent. It counts as alive until `alive_until`, which each heartbeat extends."""

    __tablename__ = "waooaw_agent_workers"

    agent: Mapped[str] = mapped_column(primary_key=True)
    worker: Mapped[str] = mapped_column(primary_key=True)
    alive_until: Mapped[datetime]
    #: When the worker that sent the last heartbeat under this name was started.
    started_at: Mapped[datetime | None]
    #: What the worker reports about itself with each heartbeat.
    report: Mapped[Any]
    #: What the worker's code declares about the agent. NULL: a version of the code that declares nothing.
    profile: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))


class SubscriptionRow(Base):
    """A subscription that was declared at least once."""

    __tablename__ = "waooaw_subscriptions"

    agent: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    patterns: Mapped[Any]
    #: The filter, or JSON's null.
    conditions: Mapped[Any | None] = mapped_column(JsonText)
    subscribed_at: Mapped[datetime]
    #: Earlier events are replayed from this time on. NULL when none are requested, or when the replay is complete.
    catch_up_from: Mapped[datetime | None]
    removed_at: Mapped[datetime | None]


class SchemaRow(Base):
    """One version of the JSON Schema of a topic."""

    __tablename__ = "waooaw_event_schemas"

    topic: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(primary_key=True)
    json_schema: Mapped[Any] = mapped_column(JsonText)
    checked_at: Mapped[str]
    registered_at: Mapped[datetime]


class MessageRow(Base):
    """A message, written before it is published. A published event has one row too, without a recipient."""

    __tablename__ = "waooaw_messages"
    __table_args__ = (
        # Statistics read only this index.
        Index(
            "waooaw_messages_sent",
            "sent_at",
            "message_id",
            postgresql_include=["message_type", "from_agent", "to_agent"],
        ),
        Index("waooaw_messages_to", "to_agent", "sent_at", "message_id"),
        Index("waooaw_messages_from", "from_agent", "sent_at", "message_id"),
        Index("waooaw_messages_correlation", "correlation_id"),
        Index("waooaw_messages_conversation", "conversation_id"),
        Index(
            "waooaw_messages_topic",
            "topic",
            "sent_at",
            "message_id",
            postgresql_where=text("topic IS NOT NULL"),
            sqlite_where=text("topic IS NOT NULL"),
        ),
        {"postgresql_partition_by": "RANGE (retain_until)"},
    )

    message_id: Mapped[str] = mapped_column(primary_key=True)
    retain_until: Mapped[datetime] = mapped_column(primary_key=True)
    from_agent: Mapped[str]
    #: Empty in the row of a published event, whose `handler` is its topic.
    to_agent: Mapped[str]
    handler: Mapped[str]
    message_type: Mapped[str]
    priority: Mapped[int]
    correlation_id: Mapped[str]
    conversation_id: Mapped[str]
    causation_id: Mapped[str | None]
    #: Who the sender says it is, such as a DID.
    identity: Mapped[str | None]
    sent_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    #: JSON's null after an erasure.
    payload: Mapped[Any | None] = mapped_column(JsonText)
    #: SHA-256 of the payload. It stays when the payload is erased.
    payload_digest: Mapped[str]
    erased_at: Mapped[datetime | None]
    #: The topic and the attributes of an EVENT.
    topic: Mapped[str | None]
    event: Mapped[Any | None] = mapped_column(JsonText)
    #: The publish options, to publish the message again unchanged. NULL for a plain message.
    options: Mapped[Any | None] = mapped_column(JsonText)


class MessageEventRow(Base):
    """One event of a message: delivered, handled, failed and so on.

    Writing the same event twice adds one row. Of several terminal events, the first is stored.
    """

    __tablename__ = "waooaw_message_events"
    __table_args__ = (
        Index(
            "waooaw_message_events_terminal",
            "message_id",
            "retain_until",
            unique=True,
            postgresql_include=["event"],  # the final status is read from this index alone
            postgresql_where=text("terminal"),
            sqlite_where=text("terminal"),
        ),
        Index(
            "waooaw_message_events_event",
            "event",
            "sent_at",
            "message_id",
            postgresql_include=["seconds", "attempt"],
            postgresql_where=text("event <> 'sent'"),
            sqlite_where=text("event <> 'sent'"),
        ),
        {"postgresql_partition_by": "RANGE (retain_until)"},
    )

    message_id: Mapped[str] = mapped_column(primary_key=True)
    retain_until: Mapped[datetime] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(primary_key=True)
    event: Mapped[str] = mapped_column(primary_key=True)
    #: Empty when no worker reported the event.
    worker: Mapped[str] = mapped_column(primary_key=True)
    terminal: Mapped[bool]
    attempt: Mapped[int]
    seconds: Mapped[float | None]
    error: Mapped[str | None]
    #: Copied from the message, so that events of a time range are found without reading the messages.
    sent_at: Mapped[datetime]


class OpenMessageRow(Base):
    """A message that may have no terminal event yet.

    The table works as an index: it stays small however large the ledger is. It has every message without a
    terminal event. A message that has ended may stay in it until the next sweep.
    """

    __tablename__ = "waooaw_open_messages"
    __table_args__ = (
        Index("waooaw_open_messages_sent", "sent_at", "message_id"),
        Index("waooaw_open_messages_expiry", "expires_at"),
        Index("waooaw_open_messages_to", "to_agent", "written_at"),
    )

    message_id: Mapped[str] = mapped_column(primary_key=True)
    retain_until: Mapped[datetime]
    sent_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    #: Copied from the message, so that an agent's open messages are found without reading the messages.
    from_agent: Mapped[str]
    to_agent: Mapped[str]
    #: When the row was written, by the database's clock. A frozen database may write a row late. Messages that are
    #: sent together are a microsecond apart, in the order of sending.
    written_at: Mapped[datetime] = mapped_column(server_default=func.now())
    #: Whether recovery must not publish it again: a caller waits for the answer, and only for a limited time.
    unrepeatable: Mapped[bool] = mapped_column(server_default=false())


class KeyedMessageRow(Base):
    """A message whose handler has `key=`, on a broker that cannot order messages by key.

    It counts only while the message is open: whatever ends the message also frees its key.
    """

    __tablename__ = "waooaw_keyed_messages"
    __table_args__ = (Index("waooaw_keyed_messages_key", "agent", "key", "place_at", "message_id"),)

    message_id: Mapped[str] = mapped_column(primary_key=True)
    agent: Mapped[str]
    #: A digest of the key. Empty: the message has no key.
    key: Mapped[str]
    #: The rank of its priority.
    rank: Mapped[int]
    #: Its place in the key: when it was written, or when it is due if it is delayed.
    place_at: Mapped[datetime]
    #: ``waits``, ``begun`` or ``dropped``.
    state: Mapped[str]
    #: The worker that has begun it, and until when that holds without news. NULL: none works on it.
    holder: Mapped[str | None]
    leased_until: Mapped[datetime | None]
    #: Until when later messages of its key wait for it although no worker says that it has the message.
    expected_until: Mapped[datetime]


class CancellationRow(Base):
    """A requested cancellation. It is stored as long as a worker may still receive the message."""

    __tablename__ = "waooaw_cancels"
    __table_args__ = (Index("waooaw_cancels_agent", "to_agent"),)

    message_id: Mapped[str] = mapped_column(primary_key=True)
    to_agent: Mapped[str]
    #: Whether to stop a handler that has already started, too.
    running: Mapped[bool]
    #: When workers may drop the request: no worker starts the message after this time. NULL: it has no such time.
    until: Mapped[datetime | None]
    retain_until: Mapped[datetime]


class RestrictionRow(Base):
    """What operators decided about a sender at run time."""

    __tablename__ = "waooaw_restrictions"

    agent: Mapped[str] = mapped_column(primary_key=True)
    #: Whether it has a quota of its own, which the Redis of the rate limits stores.
    is_limited: Mapped[bool] = mapped_column(server_default=false())
    #: Since when its sends are refused, by whom and why; NULL: it is not paused.
    paused_at: Mapped[datetime | None]
    paused_by: Mapped[str | None]
    reason: Mapped[str | None]


class BreakerRow(Base):
    """The circuit breaker of an agent that is open or counts failures."""

    __tablename__ = "waooaw_breakers"

    agent: Mapped[str] = mapped_column(primary_key=True)
    #: A BreakerRecord as JSON. A row lock guards it: each change reads and writes the whole.
    record: Mapped[Any]


class InFlightRow(Base):
    """An open request of an agent to another one that has a limit. It counts until its lease ends."""

    __tablename__ = "waooaw_in_flight"

    caller: Mapped[str] = mapped_column(primary_key=True)
    target: Mapped[str] = mapped_column(primary_key=True)
    request: Mapped[str] = mapped_column(primary_key=True)
    until: Mapped[datetime]


class InboxRow(Base):
    """A message that a handler with ``once=True`` has handled. The row is written in the handler's transaction."""

    __tablename__ = "waooaw_inbox"
    __table_args__ = (Index("waooaw_inbox_handled", "handled_at"),)

    message_id: Mapped[str] = mapped_column(primary_key=True)
    handler: Mapped[str]
    handled_at: Mapped[datetime]
    #: What the handler returned, to answer a request that is redelivered.
    result: Mapped[Any | None] = mapped_column(JsonText)


class RefusalRow(Base):
    """How many messages of an agent a rate limit refused in one minute, as counted by one process."""

    __tablename__ = "waooaw_refusals"
    __table_args__ = (Index("waooaw_refusals_minute", "minute"),)

    agent: Mapped[str] = mapped_column(primary_key=True)
    rule: Mapped[str] = mapped_column(primary_key=True)
    minute: Mapped[datetime] = mapped_column(primary_key=True)
    process: Mapped[str] = mapped_column(primary_key=True)
    part: Mapped[int] = mapped_column(primary_key=True)
    count: Mapped[int]


class ReplayRow(Base):
    """A replay of events that the system's worker carries out."""

    __tablename__ = "waooaw_replays"

    replay_id: Mapped[str] = mapped_column(primary_key=True)
    subscriber: Mapped[str]
    #: Which events it selects.
    selection: Mapped[Any] = mapped_column(JsonText)
    per_second: Mapped[float | None]
    speed: Mapped[float | None]
    from_agent: Mapped[str]
    priority: Mapped[int]
    state: Mapped[str]
    #: How many events were sent, and the last of them.
    events: Mapped[int]
    position_at: Mapped[datetime | None]
    position_id: Mapped[str | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    #: The worker that carries it out, and until when it does without news; when the next worker may begin.
    claim: Mapped[str | None]
    claimed_until: Mapped[datetime | None]
    due_at: Mapped[datetime | None]
    error: Mapped[str | None]


class HoldRow(Base):
    """A legal hold. A purge skips the messages that it names."""

    __tablename__ = "waooaw_holds"

    #: ``message``, ``conversation`` or ``agent``.
    kind: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str]
    placed_at: Mapped[datetime]


class OperatorActionRow(Base):
    """What a person changed by hand: recorded before it is carried out, and again with what came of it."""

    __tablename__ = "waooaw_operator_actions"
    __table_args__ = (Index("waooaw_operator_actions_at", "at", "action_id"),)

    action_id: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    person: Mapped[str]
    address: Mapped[str]
    action: Mapped[str]
    target: Mapped[str]
    reason: Mapped[str]
    outcome: Mapped[str]
    details: Mapped[str | None]
    ended_at: Mapped[datetime | None]


class PurgeRow(Base):
    """A purge or an erasure: the rule, and how much it removed."""

    __tablename__ = "waooaw_purges"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime]
    rule: Mapped[str]
    messages: Mapped[int]
    events: Mapped[int]
