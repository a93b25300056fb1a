"""The tables of the ledger. Messages and events are only added: a message's status is a question, not a column.

On PostgreSQL `messages` and `message_events` are partitioned by the month of `retain_until`, so that a purge drops
partitions; every unique key therefore holds that column, which a message and all its events have in common.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, Index, String, Text, TypeDecorator, false, func, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from waooaw_celery.ledger.database.rows import payload_text
from waooaw_celery.messages.validation import restored


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite, which knows no time zones, gets UTC without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn what is written to UTC."""
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Say of what is read that it is UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class JsonText(TypeDecorator[Any]):
    """A JSON value that stays as it was said.

    On SQLite it is text: a column named JSON would take a payload that is a number for one of SQLite's own, and
    one beyond 64 bits would lose its last digits.
    """

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Return the type that a database knows."""
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else JSON())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Turn what is written to text for SQLite."""
        return payload_text(value) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Turn what is read back into what was said."""
        return restored(json.loads(value) if dialect.name == "sqlite" and value is not None else value)


class Base(DeclarativeBase):
    """All tables of the ledger."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own way to say it
        datetime: UtcDateTime(),
        # JSON and not JSONB: it keeps the text as it was said, and takes every string that JSON can write.
        Any: JSON(),
        str: String(),
    }


class AgentRow(Base):
    """An agent that was ever declared."""

    __tablename__ = "waooaw_agents"

    name: Mapped[str] = mapped_column(primary_key=True)
    handlers: Mapped[Any]
    capabilities: Mapped[Any]
    declared_at: Mapped[datetime]
    last_seen: Mapped[datetime]


class WorkerRow(Base):
    """A worker of an agent, counted as living until a moment that each sign of life puts off."""

    __tablename__ = "waooaw_agent_workers"

    agent: Mapped[str] = mapped_column(primary_key=True)
    worker: Mapped[str] = mapped_column(primary_key=True)
    alive_until: Mapped[datetime]
    #: When the worker of this name that gave the last sign of life was started.
    started_at: Mapped[datetime | None]
    #: What it reports about itself with each heartbeat.
    report: Mapped[Any]


class SubscriptionRow(Base):
    """A subscription that was ever declared."""

    __tablename__ = "waooaw_subscriptions"

    agent: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    patterns: Mapped[Any]
    #: The filter, or JSON's null.
    conditions: Mapped[Any | None] = mapped_column(JsonText)
    subscribed_at: Mapped[datetime]
    #: From when on it wants what was published before, until it has got it.
    catch_up_from: Mapped[datetime | None]
    removed_at: Mapped[datetime | None]


class SchemaRow(Base):
    """A version of the JSON Schema of a topic."""

    __tablename__ = "waooaw_event_schemas"

    topic: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(primary_key=True)
    json_schema: Mapped[Any] = mapped_column(JsonText)
    checked_at: Mapped[str]
    registered_at: Mapped[datetime]


class MessageRow(Base):
    """What was said, written before it was published; and events, each once, as said to nobody in particular."""

    __tablename__ = "waooaw_messages"
    __table_args__ = (
        # Statistics are answered from this index alone.
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
    #: Empty where it is the record of an event; the handler is its topic then.
    to_agent: Mapped[str]
    handler: Mapped[str]
    message_type: Mapped[str]
    priority: Mapped[int]
    correlation_id: Mapped[str]
    conversation_id: Mapped[str]
    causation_id: Mapped[str | None]
    sent_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    #: JSON's null too when it was erased.
    payload: Mapped[Any | None] = mapped_column(JsonText)
    #: SHA-256 of the payload, which stays when the payload is erased: room for a chain of evidence.
    payload_digest: Mapped[str]
    erased_at: Mapped[datetime | None]
    #: Of an EVENT: its topic, and its attributes as they travel.
    topic: Mapped[str | None]
    event: Mapped[Any | None] = mapped_column(JsonText)
    #: What its publish had besides, to publish it again the same; NULL for a plain message.
    options: Mapped[Any | None] = mapped_column(JsonText)


class MessageEventRow(Base):
    """What became of a message. Writing the same fact twice writes it once; of terminal ones the first is kept."""

    __tablename__ = "waooaw_message_events"
    __table_args__ = (
        Index(
            "waooaw_message_events_terminal",
            "message_id",
            "retain_until",
            unique=True,
            postgresql_include=["event"],  # how a message ended is read from this index alone
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
    #: Empty where no worker told it.
    worker: Mapped[str] = mapped_column(primary_key=True)
    terminal: Mapped[bool]
    attempt: Mapped[int]
    seconds: Mapped[float | None]
    error: Mapped[str | None]
    #: The message's, so that what ended in a stretch of time is found without looking at the messages.
    sent_at: Mapped[datetime]


class OpenMessageRow(Base):
    """A message that may not have ended yet: an index in the form of a table, small however large the ledger is.

    Every message without a terminal event is here. One that has ended may be for a moment, until a sweep.
    """

    __tablename__ = "waooaw_open_messages"
    __table_args__ = (
        Index("waooaw_open_messages_sent", "sent_at", "message_id"),
        Index("waooaw_open_messages_expiry", "expires_at"),
    )

    message_id: Mapped[str] = mapped_column(primary_key=True)
    retain_until: Mapped[datetime]
    sent_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    #: The message's, so that an agent's open messages are found without looking at the messages.
    from_agent: Mapped[str]
    to_agent: Mapped[str]
    #: When the row was written, by the database's own clock: one that froze may take a row late.
    written_at: Mapped[datetime] = mapped_column(server_default=func.now())
    #: Whether it is never published again: somebody waits for its answer, and not for a late one.
    unrepeatable: Mapped[bool] = mapped_column(server_default=false())


class CancellationRow(Base):
    """A message that somebody asked to cancel, as long as a worker may meet it."""

    __tablename__ = "waooaw_cancels"
    __table_args__ = (Index("waooaw_cancels_agent", "to_agent"),)

    message_id: Mapped[str] = mapped_column(primary_key=True)
    to_agent: Mapped[str]
    #: Whether a handler that has begun is to be stopped too.
    running: Mapped[bool]
    #: No worker begins it after that, or goes on with what it was told; None: as long as it is kept.
    until: Mapped[datetime | None]
    retain_until: Mapped[datetime]


class InboxRow(Base):
    """A message whose effect is in this database: written in the transaction of its handler (``once=True``)."""

    __tablename__ = "waooaw_inbox"
    __table_args__ = (Index("waooaw_inbox_handled", "handled_at"),)

    message_id: Mapped[str] = mapped_column(primary_key=True)
    handler: Mapped[str]
    handled_at: Mapped[datetime]
    #: What the handler returned, for the answer to a request that comes again.
    result: Mapped[Any | None] = mapped_column(JsonText)


class RefusalRow(Base):
    """Messages of an agent that a rate limit refused in a minute, as one process counted them."""

    __tablename__ = "waooaw_refusals"
    __table_args__ = (Index("waooaw_refusals_minute", "minute"),)

    agent: Mapped[str] = mapped_column(primary_key=True)
    rule: Mapped[str] = mapped_column(primary_key=True)
    minute: Mapped[datetime] = mapped_column(primary_key=True)
    process: Mapped[str] = mapped_column(primary_key=True)
    part: Mapped[int] = mapped_column(primary_key=True)
    count: Mapped[int]


class HoldRow(Base):
    """A legal hold: what it names is not purged while it stands."""

    __tablename__ = "waooaw_holds"

    #: ``message``, ``conversation`` or ``agent``.
    kind: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str]
    placed_at: Mapped[datetime]


class PurgeRow(Base):
    """What a purge or an erasure did: by which rule, how much."""

    __tablename__ = "waooaw_purges"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime]
    rule: Mapped[str]
    messages: Mapped[int]
    events: Mapped[int]
