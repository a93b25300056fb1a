"""Creates what keeps messages in the order of their keys on brokers that cannot."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from waooaw_celery.ledger.database.migrations.functions import WRITE

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the table and the indexes, and write messages that are sent together a microsecond apart."""
    op.create_index("waooaw_open_messages_to", "waooaw_open_messages", ["to_agent", "written_at"])
    op.create_table(
        "waooaw_keyed_messages",
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("agent", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("place_at", _TIME, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("holder", sa.String),
        sa.Column("leased_until", _TIME),
        sa.Column("expected_until", _TIME, nullable=False),
    )
    op.create_index(
        "waooaw_keyed_messages_key", "waooaw_keyed_messages", ["agent", "key", "place_at", "message_id"]
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(WRITE)


def downgrade() -> None:
    """Drop the table and the index. The function may stay as it is: it needs neither."""
    op.drop_table("waooaw_keyed_messages")
    op.drop_index("waooaw_open_messages_to", "waooaw_open_messages")
