"""Creates the tables of large payloads, which travel by reference."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "waooaw_objects",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("stored_at", _TIME, nullable=False),
        sa.Column("content", sa.LargeBinary),
    )
    op.create_table(
        "waooaw_object_uses",
        sa.Column("key", sa.String, sa.ForeignKey("waooaw_objects.key"), primary_key=True),
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("used_at", _TIME, nullable=False),
    )
    op.create_index("waooaw_object_uses_message", "waooaw_object_uses", ["message_id"])


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("waooaw_object_uses")
    op.drop_table("waooaw_objects")
