"""Creates the ledger: messages and their events, agents, subscriptions, holds and purges."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from alembic import op

from waooaw_celery.ledger.database.migrations.functions import ONLY_ENDS, WRITE, WRITE_FACT
from waooaw_celery.ledger.database.migrations.workflows_0001 import create_workflow_tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_JSON = sa.JSON()
#: A value that is stored exactly as it was sent. A JSON column of SQLite would round large numbers.
_JSON_TEXT = sa.JSON().with_variant(sa.Text(), "sqlite")
_PARTITIONED: Any = {"postgresql_partition_by": "RANGE (retain_until)"}


def upgrade() -> None:
    """Create the tables, and the ledger's id. On PostgreSQL, messages and their events are partitioned."""
    identity = op.create_table("waooaw_identity", sa.Column("id", sa.String, primary_key=True))
    op.bulk_insert(identity, [{"id": str(uuid4())}])
    op.create_table(
        "waooaw_agents",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("handlers", _JSON, nullable=False),
        sa.Column("capabilities", _JSON, nullable=False),
        sa.Column("declared_at", _TIME, nullable=False),
        sa.Column("last_seen", _TIME, nullable=False),
        sa.Column("agent_order", sa.JSON(none_as_null=True)),
    )
    op.create_table(
        "waooaw_agent_workers",
        sa.Column("agent", sa.String, primary_key=True),
        sa.Column("worker", sa.String, primary_key=True),
        sa.Column("alive_until", _TIME, nullable=False),
        sa.Column("started_at", _TIME),
        sa.Column("report", sa.JSON, nullable=False),
        sa.Column("profile", sa.JSON(none_as_null=True)),
    )
    op.create_table(
        "waooaw_subscriptions",
        sa.Column("agent", sa.String, primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("patterns", _JSON, nullable=False),
        sa.Column("conditions", _JSON_TEXT),
        sa.Column("subscribed_at", _TIME, nullable=False),
        sa.Column("catch_up_from", _TIME),
        sa.Column("removed_at", _TIME),
    )
    op.create_table(
        "waooaw_event_schemas",
        sa.Column("topic", sa.String, primary_key=True),
        sa.Column("version", sa.String, primary_key=True),
        sa.Column("json_schema", _JSON_TEXT, nullable=False),
        sa.Column("checked_at", sa.String, nullable=False),
        sa.Column("registered_at", _TIME, nullable=False),
    )
    op.create_table(
        "waooaw_messages",
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("retain_until", _TIME, primary_key=True),
        sa.Column("from_agent", sa.String, nullable=False),
        sa.Column("to_agent", sa.String, nullable=False),
        sa.Column("handler", sa.String, nullable=False),
        sa.Column("message_type", sa.String, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("correlation_id", sa.String, nullable=False),
        sa.Column("conversation_id", sa.String, nullable=False),
        sa.Column("causation_id", sa.String),
        sa.Column("identity", sa.String),
        sa.Column("sent_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME),
        sa.Column("payload", _JSON_TEXT),
        sa.Column("payload_digest", sa.String, nullable=False),
        sa.Column("erased_at", _TIME),
        sa.Column("topic", sa.String),
        sa.Column("event", _JSON_TEXT),
        sa.Column("options", _JSON_TEXT),
        **_PARTITIONED,
    )
    op.create_index(
        "waooaw_messages_sent",
        "waooaw_messages",
        ["sent_at", "message_id"],
        postgresql_include=["message_type", "from_agent", "to_agent"],
    )
    for name, columns in {
        "waooaw_messages_to": ["to_agent", "sent_at", "message_id"],
        "waooaw_messages_from": ["from_agent", "sent_at", "message_id"],
        "waooaw_messages_correlation": ["correlation_id"],
        "waooaw_messages_conversation": ["conversation_id"],
    }.items():
        op.create_index(name, "waooaw_messages", columns)
    op.create_index(
        "waooaw_messages_topic",
        "waooaw_messages",
        ["topic", "sent_at", "message_id"],
        postgresql_where=sa.text("topic IS NOT NULL"),
        sqlite_where=sa.text("topic IS NOT NULL"),
    )
    op.create_table(
        "waooaw_message_events",
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("retain_until", _TIME, primary_key=True),
        sa.Column("at", _TIME, primary_key=True),
        sa.Column("event", sa.String, primary_key=True),
        sa.Column("worker", sa.String, primary_key=True),
        sa.Column("terminal", sa.Boolean, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Double),
        sa.Column("error", sa.String),
        sa.Column("sent_at", _TIME, nullable=False),
        **_PARTITIONED,
    )
    op.create_index(
        "waooaw_message_events_terminal",
        "waooaw_message_events",
        ["message_id", "retain_until"],
        unique=True,
        postgresql_include=["event"],
        postgresql_where=sa.text("terminal"),
        sqlite_where=sa.text("terminal"),
    )
    op.create_index(
        "waooaw_message_events_event",
        "waooaw_message_events",
        ["event", "sent_at", "message_id"],
        postgresql_include=["seconds", "attempt"],
        postgresql_where=sa.text("event <> 'sent'"),
        sqlite_where=sa.text("event <> 'sent'"),
    )
    op.create_table(
        "waooaw_open_messages",
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("retain_until", _TIME, nullable=False),
        sa.Column("sent_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME),
        sa.Column("from_agent", sa.String, nullable=False),
        sa.Column("to_agent", sa.String, nullable=False),
        sa.Column("written_at", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("unrepeatable", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.create_index("waooaw_open_messages_sent", "waooaw_open_messages", ["sent_at", "message_id"])
    op.create_index("waooaw_open_messages_expiry", "waooaw_open_messages", ["expires_at"])
    op.create_table(
        "waooaw_cancels",
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("to_agent", sa.String, nullable=False),
        sa.Column("running", sa.Boolean, nullable=False),
        sa.Column("until", _TIME),
        sa.Column("retain_until", _TIME, nullable=False),
    )
    op.create_index("waooaw_cancels_agent", "waooaw_cancels", ["to_agent"])
    op.create_table(
        "waooaw_inbox",
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("handler", sa.String, nullable=False),
        sa.Column("handled_at", _TIME, nullable=False),
        sa.Column("result", _JSON_TEXT),
    )
    op.create_index("waooaw_inbox_handled", "waooaw_inbox", ["handled_at"])
    op.create_table(
        "waooaw_refusals",
        sa.Column("agent", sa.String, primary_key=True),
        sa.Column("rule", sa.String, primary_key=True),
        sa.Column("minute", _TIME, primary_key=True),
        sa.Column("process", sa.String, primary_key=True),
        sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("count", sa.Integer, nullable=False),
    )
    op.create_index("waooaw_refusals_minute", "waooaw_refusals", ["minute"])
    op.create_table(
        "waooaw_restrictions",
        sa.Column("agent", sa.String, primary_key=True),
        sa.Column("is_limited", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("paused_at", _TIME),
        sa.Column("paused_by", sa.String),
        sa.Column("reason", sa.String),
    )
    op.create_table(
        "waooaw_breakers",
        sa.Column("agent", sa.String, primary_key=True),
        sa.Column("record", _JSON, nullable=False),
    )
    op.create_table(
        "waooaw_in_flight",
        sa.Column("caller", sa.String, primary_key=True),
        sa.Column("target", sa.String, primary_key=True),
        sa.Column("request", sa.String, primary_key=True),
        sa.Column("until", _TIME, nullable=False),
    )
    op.create_table(
        "waooaw_replays",
        sa.Column("replay_id", sa.String, primary_key=True),
        sa.Column("subscriber", sa.String, nullable=False),
        sa.Column("selection", _JSON_TEXT, nullable=False),
        sa.Column("per_second", sa.Double),
        sa.Column("speed", sa.Double),
        sa.Column("from_agent", sa.String, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("events", sa.Integer, nullable=False),
        sa.Column("position_at", _TIME),
        sa.Column("position_id", sa.String),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("started_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.Column("claim", sa.String),
        sa.Column("claimed_until", _TIME),
        sa.Column("due_at", _TIME),
        sa.Column("error", sa.String),
    )
    op.create_table(
        "waooaw_holds",
        sa.Column("kind", sa.String, primary_key=True),
        sa.Column("value", sa.String, primary_key=True),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("placed_at", _TIME, nullable=False),
    )
    op.create_table(
        "waooaw_operator_actions",
        sa.Column("action_id", sa.String, primary_key=True),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("person", sa.String, nullable=False),
        sa.Column("address", sa.String, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("target", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("details", sa.String),
        sa.Column("ended_at", _TIME),
    )
    op.create_index("waooaw_operator_actions_at", "waooaw_operator_actions", ["at", "action_id"])
    op.create_table(
        "waooaw_purges",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("rule", sa.String, nullable=False),
        sa.Column("messages", sa.Integer, nullable=False),
        sa.Column("events", sa.Integer, nullable=False),
    )
    create_workflow_tables()
    if op.get_bind().dialect.name == "postgresql":
        # For rows outside of every monthly partition. The monthly partitions are created later.
        for table in ("waooaw_messages", "waooaw_message_events"):
            op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
        op.execute(ONLY_ENDS)
        op.execute(WRITE_FACT)
        op.execute(WRITE)


def downgrade() -> None:
    """Drop the ledger with all its rows."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION waooaw_write")
        op.execute("DROP FUNCTION waooaw_write_fact")
        op.execute("DROP FUNCTION waooaw_only_ends")
    for table in (
        "workflow_inputs",
        "workflow_steps",
        "workflows",
        "purges",
        "operator_actions",
        "holds",
        "replays",
        "in_flight",
        "breakers",
        "restrictions",
        "refusals",
        "cancels",
        "inbox",
        "open_messages",
        "message_events",
        "messages",
        "event_schemas",
        "subscriptions",
        "agent_workers",
        "agents",
        "identity",
    ):
        op.drop_table(f"waooaw_{table}")
