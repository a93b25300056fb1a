"""The ledger: messages and events, agents, holds and purges."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_JSON = sa.JSON()
_PARTITIONED: Any = {"postgresql_partition_by": "RANGE (retain_until)"}


def upgrade() -> None:
    """Create the tables; on PostgreSQL the two large ones are partitioned."""
    op.create_table(
        "waooaw_agents",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("handlers", _JSON, nullable=False),
        sa.Column("declared_at", _MOMENT, nullable=False),
        sa.Column("last_seen", _MOMENT, nullable=False),
    )
    op.create_table(
        "waooaw_agent_workers",
        sa.Column("agent", sa.String, primary_key=True),
        sa.Column("worker", sa.String, primary_key=True),
        sa.Column("alive_until", _MOMENT, nullable=False),
    )
    op.create_table(
        "waooaw_messages",
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("retain_until", _MOMENT, primary_key=True),
        sa.Column("from_agent", sa.String, nullable=False),
        sa.Column("to_agent", sa.String, nullable=False),
        sa.Column("handler", sa.String, nullable=False),
        sa.Column("message_type", sa.String, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("correlation_id", sa.String, nullable=False),
        sa.Column("conversation_id", sa.String, nullable=False),
        sa.Column("causation_id", sa.String),
        sa.Column("sent_at", _MOMENT, nullable=False),
        sa.Column("expires_at", _MOMENT),
        sa.Column("payload", _JSON),
        sa.Column("payload_digest", sa.String, nullable=False),
        sa.Column("erased_at", _MOMENT),
        **_PARTITIONED,
    )
    for name, columns in {
        "waooaw_messages_sent": ["sent_at", "message_id"],
        "waooaw_messages_to": ["to_agent", "sent_at"],
        "waooaw_messages_from": ["from_agent", "sent_at"],
        "waooaw_messages_correlation": ["correlation_id"],
        "waooaw_messages_conversation": ["conversation_id"],
        "waooaw_messages_expiry": ["expires_at"],
    }.items():
        op.create_index(name, "waooaw_messages", columns)
    op.create_table(
        "waooaw_message_events",
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("retain_until", _MOMENT, primary_key=True),
        sa.Column("event", sa.String, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("terminal", sa.Boolean, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("worker", sa.String),
        sa.Column("error", sa.String),
        **_PARTITIONED,
    )
    op.create_index(
        "waooaw_message_events_terminal",
        "waooaw_message_events",
        ["message_id", "retain_until"],
        unique=True,
        postgresql_where=sa.text("terminal"),
        sqlite_where=sa.text("terminal"),
    )
    op.create_index("waooaw_message_events_at", "waooaw_message_events", ["at"])
    op.create_table(
        "waooaw_holds",
        sa.Column("kind", sa.String, primary_key=True),
        sa.Column("value", sa.String, primary_key=True),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("placed_at", _MOMENT, nullable=False),
    )
    op.create_table(
        "waooaw_purges",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("rule", sa.String, nullable=False),
        sa.Column("messages", sa.Integer, nullable=False),
        sa.Column("events", sa.Integer, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        # Whatever no month's partition takes; the months themselves are made as time goes on.
        for table in ("waooaw_messages", "waooaw_message_events"):
            op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")


def downgrade() -> None:
    """Drop the ledger, with everything in it."""
    for table in ("purges", "holds", "message_events", "messages", "agent_workers", "agents"):
        op.drop_table(f"waooaw_{table}")
