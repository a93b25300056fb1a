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
#: A column named JSON would round large numbers on SQLite.
_SAID = sa.JSON().with_variant(sa.Text(), "sqlite")
_PARTITIONED: Any = {"postgresql_partition_by": "RANGE (retain_until)"}

#: How rows are added: one call is one round trip and one transaction, and PostgreSQL keeps its plans. All rows
#: come as one JSON document of each kind, so that the call is the same for any number of them.
_WRITE = """
CREATE FUNCTION waooaw_write(messages json, facts json, asks boolean)
RETURNS TABLE (id varchar, became varchar)
LANGUAGE plpgsql AS $$
DECLARE
    begun record;
    before varchar[] := '{}';
    known record;
    twice varchar[] := '{}';
    twice_until timestamptz[] := '{}';
    twice_sent timestamptz[] := '{}';
    ended varchar[];
    ended_until timestamptz[];
    closed_count integer;
BEGIN
    IF messages IS NOT NULL THEN
        -- An id that its sender did not just make may be in any partition: the unique key holds the retention too.
        IF strpos(messages::text, '"asks"') > 0 THEN
            before := ARRAY(
                SELECT row.message_id FROM json_to_recordset(messages) AS row (message_id varchar, asks boolean)
                WHERE row.asks AND EXISTS (
                    SELECT FROM waooaw_messages AS there WHERE there.message_id = row.message_id OFFSET 0
                )
            );
        END IF;
        RETURN QUERY
        WITH given AS MATERIALIZED (
            SELECT * FROM json_to_recordset(messages) AS row (
                message_id varchar, retain_until timestamptz, from_agent varchar, to_agent varchar,
                handler varchar, message_type varchar, priority integer, correlation_id varchar,
                conversation_id varchar, causation_id varchar, sent_at timestamptz, expires_at timestamptz,
                payload text, payload_digest varchar, topic varchar, event text, options text,
                unrepeatable boolean
            )
        ), opened AS (
            -- A message that is among the open ones already was written down before.
            INSERT INTO waooaw_open_messages (
                message_id, retain_until, sent_at, expires_at, from_agent, to_agent, written_at, unrepeatable
            )
            SELECT
                given.message_id, given.retain_until, given.sent_at, given.expires_at, given.from_agent,
                given.to_agent, clock_timestamp(), COALESCE(given.unrepeatable, false)
            FROM given WHERE given.message_id <> ALL (before)
            ON CONFLICT DO NOTHING RETURNING waooaw_open_messages.message_id
        ), said AS (
            INSERT INTO waooaw_messages (
                message_id, retain_until, from_agent, to_agent, handler, message_type, priority, correlation_id,
                conversation_id, causation_id, sent_at, expires_at, payload, payload_digest, topic, event, options
            )
            SELECT
                given.message_id, given.retain_until, given.from_agent, given.to_agent, given.handler,
                given.message_type, given.priority, given.correlation_id, given.conversation_id,
                given.causation_id, given.sent_at, given.expires_at, given.payload::json, given.payload_digest,
                given.topic, given.event::json, given.options::json
            FROM given WHERE given.message_id IN (SELECT opened.message_id FROM opened)
            ON CONFLICT DO NOTHING RETURNING waooaw_messages.message_id
        )
        SELECT said.message_id, 'new'::varchar FROM said;
    END IF;
    IF facts IS NOT NULL THEN
        -- Whoever is about to handle a message asks whether it has ended: then that is not a beginning.
        IF asks AND strpos(facts::text, '"asks"') > 0 THEN
            FOR begun IN
                SELECT * FROM json_to_recordset(facts) AS row (
                    message_id varchar, asks boolean
                )
                WHERE row.asks
            LOOP
                -- One by one: the key of the open messages says most often that it has not. Only else every
                -- partition is asked: the envelope of a copy may name another retention than the message's own.
                IF NOT EXISTS (
                    SELECT FROM waooaw_open_messages WHERE waooaw_open_messages.message_id = begun.message_id
                ) THEN
                    SELECT events.retain_until, events.sent_at INTO known FROM waooaw_message_events AS events
                    WHERE events.message_id = begun.message_id AND events.terminal LIMIT 1;
                    IF FOUND THEN
                        twice := twice || begun.message_id;
                        twice_until := twice_until || known.retain_until;
                        twice_sent := twice_sent || known.sent_at;
                    END IF;
                END IF;
            END LOOP;
        END IF;
        IF cardinality(twice) > 0 THEN
            RETURN QUERY SELECT again, 'twice'::varchar FROM unnest(twice) AS again;
        END IF;
        WITH told AS (
            INSERT INTO waooaw_message_events (
                message_id, retain_until, at, event, worker, terminal, attempt, seconds, error, sent_at
            )
            SELECT
                row.message_id,
                COALESCE(
                    own.retain_until, twice_until[array_position(twice, row.message_id)], row.retain_until
                ),
                row.at,
                CASE
                    WHEN row.event = 'delivered' AND row.message_id = ANY (twice) THEN 'duplicate'
                    WHEN handled.already THEN 'handled'
                    ELSE row.event
                END,
                row.worker, row.terminal, row.attempt, row.seconds,
                CASE WHEN handled.already THEN NULL ELSE row.error END,
                COALESCE(own.sent_at, twice_sent[array_position(twice, row.message_id)], row.sent_at)
            FROM json_to_recordset(facts) AS row (
                message_id varchar, retain_until timestamptz, at timestamptz, event varchar, worker varchar,
                terminal boolean, attempt integer, seconds double precision, error varchar, sent_at timestamptz
            )
            -- The keys of a fact are those of its message, whatever the envelope of the copy says that came.
            LEFT JOIN LATERAL (
                SELECT opened.retain_until, opened.sent_at FROM waooaw_open_messages AS opened
                WHERE opened.message_id = row.message_id OFFSET 0
            ) AS own ON true
            -- Whose effect is committed has been handled, whatever is told of its end.
            CROSS JOIN LATERAL (
                SELECT row.terminal AND row.event NOT IN ('handled', 'published') AND EXISTS (
                    SELECT FROM waooaw_inbox WHERE waooaw_inbox.message_id = row.message_id
                ) AS already OFFSET 0
            ) AS handled
            ON CONFLICT DO NOTHING
            RETURNING
                waooaw_message_events.message_id, waooaw_message_events.retain_until,
                waooaw_message_events.terminal
        ), closed AS (
            -- The array makes PostgreSQL look them up by their key: it cannot know how few have ended.
            DELETE FROM waooaw_open_messages
            WHERE waooaw_open_messages.message_id
                = ANY (ARRAY(SELECT told.message_id FROM told WHERE told.terminal))
            RETURNING waooaw_open_messages.message_id
        )
        SELECT array_agg(told.message_id), array_agg(told.retain_until), (SELECT count(*) FROM closed)
        INTO ended, ended_until, closed_count FROM told WHERE told.terminal;
        IF cardinality(ended) > closed_count THEN
            -- Some were not open: no sender wrote them down, or they have ended before, and that end stays alone.
            ended := ARRAY(SELECT waooaw_only_ends(ended, ended_until));
        END IF;
        IF cardinality(ended) > 0 THEN
            RETURN QUERY SELECT again, 'ended'::varchar FROM unnest(ended) AS again;
        END IF;
    END IF;
END $$
"""

#: What keeps a message at one end. The unique index of the ends holds the retention too, since the table is
#: partitioned by it. So an end of a message that was not open is taken back when there is another one.
_ONLY_ENDS = """
CREATE FUNCTION waooaw_only_ends(ids varchar[], untils timestamptz[])
RETURNS SETOF varchar
LANGUAGE plpgsql AS $$
DECLARE
    mine record;
BEGIN
    FOR mine IN SELECT * FROM unnest(ids, untils) AS just (message_id, retain_until) LOOP
        IF EXISTS (
            SELECT FROM waooaw_message_events AS other
            WHERE other.message_id = mine.message_id AND other.terminal AND other.retain_until <> mine.retain_until
        ) THEN
            DELETE FROM waooaw_message_events AS events
            WHERE events.message_id = mine.message_id AND events.retain_until = mine.retain_until
            AND events.terminal;
        ELSE
            RETURN NEXT mine.message_id;
        END IF;
    END LOOP;
END $$
"""


def upgrade() -> None:
    """Create the tables; on PostgreSQL the two large ones are partitioned."""
    op.create_table(
        "waooaw_agents",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("handlers", _JSON, nullable=False),
        sa.Column("capabilities", _JSON, nullable=False),
        sa.Column("declared_at", _MOMENT, nullable=False),
        sa.Column("last_seen", _MOMENT, nullable=False),
    )
    op.create_table(
        "waooaw_agent_workers",
        sa.Column("agent", sa.String, primary_key=True),
        sa.Column("worker", sa.String, primary_key=True),
        sa.Column("alive_until", _MOMENT, nullable=False),
        sa.Column("started_at", _MOMENT),
        sa.Column("report", sa.JSON, nullable=False),
    )
    op.create_table(
        "waooaw_subscriptions",
        sa.Column("agent", sa.String, primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("patterns", _JSON, nullable=False),
        sa.Column("conditions", _SAID),
        sa.Column("subscribed_at", _MOMENT, nullable=False),
        sa.Column("catch_up_from", _MOMENT),
        sa.Column("removed_at", _MOMENT),
    )
    op.create_table(
        "waooaw_event_schemas",
        sa.Column("topic", sa.String, primary_key=True),
        sa.Column("version", sa.String, primary_key=True),
        sa.Column("json_schema", _SAID, nullable=False),
        sa.Column("checked_at", sa.String, nullable=False),
        sa.Column("registered_at", _MOMENT, nullable=False),
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
        sa.Column("payload", _SAID),
        sa.Column("payload_digest", sa.String, nullable=False),
        sa.Column("erased_at", _MOMENT),
        sa.Column("topic", sa.String),
        sa.Column("event", _SAID),
        sa.Column("options", _SAID),
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
        sa.Column("retain_until", _MOMENT, primary_key=True),
        sa.Column("at", _MOMENT, primary_key=True),
        sa.Column("event", sa.String, primary_key=True),
        sa.Column("worker", sa.String, primary_key=True),
        sa.Column("terminal", sa.Boolean, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Double),
        sa.Column("error", sa.String),
        sa.Column("sent_at", _MOMENT, nullable=False),
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
        sa.Column("retain_until", _MOMENT, nullable=False),
        sa.Column("sent_at", _MOMENT, nullable=False),
        sa.Column("expires_at", _MOMENT),
        sa.Column("from_agent", sa.String, nullable=False),
        sa.Column("to_agent", sa.String, nullable=False),
        sa.Column("written_at", _MOMENT, nullable=False, server_default=sa.func.now()),
        sa.Column("unrepeatable", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.create_index("waooaw_open_messages_sent", "waooaw_open_messages", ["sent_at", "message_id"])
    op.create_index("waooaw_open_messages_expiry", "waooaw_open_messages", ["expires_at"])
    op.create_table(
        "waooaw_cancels",
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("to_agent", sa.String, nullable=False),
        sa.Column("running", sa.Boolean, nullable=False),
        sa.Column("until", _MOMENT),
        sa.Column("retain_until", _MOMENT, nullable=False),
    )
    op.create_index("waooaw_cancels_agent", "waooaw_cancels", ["to_agent"])
    op.create_table(
        "waooaw_inbox",
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("handler", sa.String, nullable=False),
        sa.Column("handled_at", _MOMENT, nullable=False),
        sa.Column("result", _SAID),
    )
    op.create_index("waooaw_inbox_handled", "waooaw_inbox", ["handled_at"])
    op.create_table(
        "waooaw_refusals",
        sa.Column("agent", sa.String, primary_key=True),
        sa.Column("rule", sa.String, primary_key=True),
        sa.Column("minute", _MOMENT, primary_key=True),
        sa.Column("process", sa.String, primary_key=True),
        sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("count", sa.Integer, nullable=False),
    )
    op.create_index("waooaw_refusals_minute", "waooaw_refusals", ["minute"])
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
        op.execute(_ONLY_ENDS)
        op.execute(_WRITE)


def downgrade() -> None:
    """Drop the ledger, with everything in it."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION waooaw_write")
        op.execute("DROP FUNCTION waooaw_only_ends")
    known = ("event_schemas", "subscriptions", "agent_workers", "agents")
    for table in (
        "purges",
        "holds",
        "refusals",
        "cancels",
        "inbox",
        "open_messages",
        "message_events",
        "messages",
        *known,
    ):
        op.drop_table(f"waooaw_{table}")
