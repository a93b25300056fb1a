"""The tables of workflows in migration 0001."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

_TIME = sa.DateTime(timezone=True)


def create_workflow_tables() -> None:
    """Create the tables of workflows, of their steps and of what arrives for them."""
    op.create_table(
        "waooaw_workflows",
        sa.Column("workflow_id", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("agent", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("input", sa.Text),
        sa.Column("input_digest", sa.String, nullable=False),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("progress", sa.Text),
        sa.Column("waits_for", sa.String),
        sa.Column("conversation_id", sa.String, nullable=False),
        sa.Column("trace", sa.Text),
        sa.Column("parent_id", sa.String),
        sa.Column("forked_from", sa.String),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("started_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.Column("deadline", _TIME),
        sa.Column("retention", sa.String, nullable=False),
        sa.Column("retain_until", _TIME),
        sa.Column("owner", sa.String),
        sa.Column("lease_until", _TIME),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("takeovers", sa.Integer, nullable=False),
        sa.Column("wake_at", _TIME),
        sa.Column("last_change", sa.Integer, nullable=False),
        sa.Column("inputs", sa.Integer, nullable=False),
    )
    is_due = sa.text("wake_at IS NOT NULL")
    op.create_index(
        "waooaw_workflows_wake", "waooaw_workflows", ["wake_at"], postgresql_where=is_due, sqlite_where=is_due
    )
    op.create_index("waooaw_workflows_created", "waooaw_workflows", ["created_at", "workflow_id"])
    op.create_index("waooaw_workflows_status", "waooaw_workflows", ["status", "created_at", "workflow_id"])
    op.create_index("waooaw_workflows_agent", "waooaw_workflows", ["agent", "created_at", "workflow_id"])
    op.create_index("waooaw_workflows_conversation", "waooaw_workflows", ["conversation_id"])
    op.create_index("waooaw_workflows_parent", "waooaw_workflows", ["parent_id"])
    op.create_table(
        "waooaw_workflow_steps",
        sa.Column("workflow_id", sa.String, primary_key=True),
        sa.Column("run", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("path", sa.String, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("changed", sa.Integer, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("request_id", sa.String),
        sa.Column("details", sa.Text),
        sa.Column("outcome", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("due_at", _TIME),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME),
    )
    op.create_index("waooaw_workflow_steps_changed", "waooaw_workflow_steps", ["workflow_id", "run", "changed"])
    op.create_table(
        "waooaw_workflow_inputs",
        sa.Column("input_id", sa.String, primary_key=True),
        sa.Column("workflow_id", sa.String, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("payload", sa.Text),
        sa.Column("at", _TIME, nullable=False),
    )
    op.create_index("waooaw_workflow_inputs_workflow", "waooaw_workflow_inputs", ["workflow_id", "number"])
