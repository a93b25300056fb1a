"""The SQL functions with which PostgreSQL adds rows to the ledger, as they are now.

Migration 0001 creates them. A later migration that changes one replaces it.
"""

from __future__ import annotations

#: Ensures that a message has one terminal event. The unique index on terminal events includes retain_until,
#: because the table is partitioned by it. So the terminal event of a message that was not open is deleted again if
#: there is another one under a different retain_until. Returns the ids whose terminal event stays.
ONLY_ENDS = """
CREATE FUNCTION waooaw_only_ends(ids varchar[], retain_untils timestamptz[])
RETURNS SETOF varchar
LANGUAGE plpgsql AS $$
DECLARE
    written record;
BEGIN
    FOR written IN SELECT * FROM unnest(ids, retain_untils) AS row (message_id, retain_until) LOOP
        IF EXISTS (
            SELECT FROM waooaw_message_events AS other
            WHERE other.message_id = written.message_id AND other.terminal
            AND other.retain_until <> written.retain_until
        ) THEN
            DELETE FROM waooaw_message_events AS events
            WHERE events.message_id = written.message_id AND events.retain_until = written.retain_until
            AND events.terminal;
        ELSE
            RETURN NEXT written.message_id;
        END IF;
    END LOOP;
END $$
"""

#: Adds one event of a message that is open. Statements for one row take PostgreSQL half the time of those for any
#: number, and each message that is handled alone has two such events. Returns `ended` if the event ended the
#: message, `written` if not, and NULL if it did nothing: then the other statements are needed.
WRITE_FACT = """
CREATE FUNCTION waooaw_write_fact(fact json)
RETURNS varchar
LANGUAGE plpgsql AS $$
DECLARE
    given record;
    own record;
BEGIN
    SELECT * INTO given FROM json_to_record(fact) AS row (
        message_id varchar, at timestamptz, event varchar, worker varchar, terminal boolean, attempt integer,
        seconds double precision, error varchar
    );
    IF given.terminal AND given.event NOT IN ('handled', 'published', 'answered') THEN
        RETURN NULL; -- its effect may be committed
    END IF;
    SELECT opened.retain_until, opened.sent_at INTO own FROM waooaw_open_messages AS opened
    WHERE opened.message_id = given.message_id;
    IF NOT FOUND THEN
        RETURN NULL; -- it may have ended before
    END IF;
    INSERT INTO waooaw_message_events (
        message_id, retain_until, at, event, worker, terminal, attempt, seconds, error, sent_at
    ) VALUES (
        given.message_id, own.retain_until, given.at, given.event, given.worker, given.terminal, given.attempt,
        given.seconds, given.error, own.sent_at
    ) ON CONFLICT DO NOTHING;
    IF NOT FOUND OR NOT given.terminal THEN
        RETURN 'written';
    END IF;
    DELETE FROM waooaw_open_messages WHERE waooaw_open_messages.message_id = given.message_id;
    IF NOT FOUND AND NOT EXISTS (
        SELECT FROM waooaw_only_ends(ARRAY[given.message_id], ARRAY[own.retain_until])
    ) THEN
        RETURN 'written'; -- it ended meanwhile, and the first end counts
    END IF;
    RETURN 'ended';
END $$
"""

#: Adds messages and events. A call is one round trip and one transaction, and PostgreSQL caches its plans. Each
#: parameter is one JSON array, so that the statement is the same for any number of rows.
#:
#: It returns the ids of messages with an outcome each: `new`, the message was added; `ended`, an event of this
#: call ended it; `duplicate`, it was delivered although it had ended before.
WRITE = """
CREATE OR REPLACE FUNCTION waooaw_write(messages json, facts json, detect_duplicates boolean)
RETURNS TABLE (id varchar, outcome varchar)
LANGUAGE plpgsql AS $$
DECLARE
    known_ids varchar[] := '{}';
    delivery record;
    ending record;
    written timestamptz;
    duplicate_ids varchar[] := '{}';
    duplicate_retain_until timestamptz[] := '{}';
    duplicate_sent_at timestamptz[] := '{}';
    ended_ids varchar[];
    ended_retain_until timestamptz[];
    closed_count integer;
    single_outcome varchar;
BEGIN
    IF messages IS NULL AND json_array_length(facts) = 1 THEN
        single_outcome := waooaw_write_fact(facts -> 0);
        IF single_outcome = 'ended' THEN
            RETURN QUERY SELECT (facts -> 0 ->> 'message_id')::varchar, single_outcome;
        END IF;
        IF single_outcome IS NOT NULL THEN
            RETURN;
        END IF;
    END IF;
    IF messages IS NOT NULL THEN
        -- A reused id may be in any partition: the unique key includes retain_until.
        IF strpos(messages::text, '"check_known"') > 0 THEN
            known_ids := ARRAY(
                SELECT row.message_id FROM json_to_recordset(messages) AS row (
                    message_id varchar, check_known boolean
                )
                WHERE row.check_known AND EXISTS (
                    SELECT FROM waooaw_messages AS stored WHERE stored.message_id = row.message_id OFFSET 0
                )
            );
        END IF;
        -- The messages of a call are written at one time, each a microsecond after the one before it.
        written := clock_timestamp();
        RETURN QUERY
        WITH given AS MATERIALIZED (
            SELECT * FROM json_to_recordset(messages) AS row (
                message_id varchar, retain_until timestamptz, from_agent varchar, to_agent varchar,
                handler varchar, message_type varchar, priority integer, correlation_id varchar,
                conversation_id varchar, causation_id varchar, identity varchar, sent_at timestamptz,
                expires_at timestamptz,
                payload text, payload_digest varchar, topic varchar, event text, options text,
                unrepeatable boolean, position integer
            )
        ), opened AS (
            -- A message that is open already has a row.
            INSERT INTO waooaw_open_messages (
                message_id, retain_until, sent_at, expires_at, from_agent, to_agent, written_at, unrepeatable
            )
            SELECT
                given.message_id, given.retain_until, given.sent_at, given.expires_at, given.from_agent,
                given.to_agent, written + COALESCE(given.position, 0) * interval '1 microsecond',
                COALESCE(given.unrepeatable, false)
            FROM given WHERE given.message_id <> ALL (known_ids)
            ON CONFLICT DO NOTHING RETURNING waooaw_open_messages.message_id
        ), added AS (
            INSERT INTO waooaw_messages (
                message_id, retain_until, from_agent, to_agent, handler, message_type, priority, correlation_id,
                conversation_id, causation_id, identity, sent_at, expires_at, payload, payload_digest, topic,
                event, options
            )
            SELECT
                given.message_id, given.retain_until, given.from_agent, given.to_agent, given.handler,
                given.message_type, given.priority, given.correlation_id, given.conversation_id,
                given.causation_id, given.identity, given.sent_at, given.expires_at, given.payload::json,
                given.payload_digest, given.topic, given.event::json, given.options::json
            FROM given WHERE given.message_id IN (SELECT opened.message_id FROM opened)
            ON CONFLICT DO NOTHING RETURNING waooaw_messages.message_id
        )
        SELECT added.message_id, 'new'::varchar FROM added;
    END IF;
    IF facts IS NOT NULL THEN
        -- A delivery of a message that has ended is a duplicate.
        IF detect_duplicates AND strpos(facts::text, '"check_ended"') > 0 THEN
            FOR delivery IN
                SELECT * FROM json_to_recordset(facts) AS row (
                    message_id varchar, check_ended boolean
                )
                WHERE row.check_ended
            LOOP
                -- One by one: in most cases the primary key of the open messages shows that it has not ended.
                -- Only otherwise every partition is searched: the envelope of a copy may have another retention
                -- than the message itself.
                IF NOT EXISTS (
                    SELECT FROM waooaw_open_messages WHERE waooaw_open_messages.message_id = delivery.message_id
                ) THEN
                    SELECT events.retain_until, events.sent_at INTO ending FROM waooaw_message_events AS events
                    WHERE events.message_id = delivery.message_id AND events.terminal LIMIT 1;
                    IF FOUND THEN
                        duplicate_ids := duplicate_ids || delivery.message_id;
                        duplicate_retain_until := duplicate_retain_until || ending.retain_until;
                        duplicate_sent_at := duplicate_sent_at || ending.sent_at;
                    END IF;
                END IF;
            END LOOP;
        END IF;
        IF cardinality(duplicate_ids) > 0 THEN
            RETURN QUERY SELECT one, 'duplicate'::varchar FROM unnest(duplicate_ids) AS one;
        END IF;
        WITH added AS (
            INSERT INTO waooaw_message_events (
                message_id, retain_until, at, event, worker, terminal, attempt, seconds, error, sent_at
            )
            SELECT
                row.message_id,
                COALESCE(
                    own.retain_until,
                    duplicate_retain_until[array_position(duplicate_ids, row.message_id)],
                    row.retain_until
                ),
                row.at,
                CASE
                    WHEN row.event = 'delivered' AND row.message_id = ANY (duplicate_ids) THEN 'duplicate'
                    WHEN inbox.handled THEN 'handled'
                    ELSE row.event
                END,
                row.worker, row.terminal, row.attempt, row.seconds,
                CASE WHEN inbox.handled THEN NULL ELSE row.error END,
                COALESCE(
                    own.sent_at,
                    duplicate_sent_at[array_position(duplicate_ids, row.message_id)],
                    row.sent_at
                )
            FROM json_to_recordset(facts) AS row (
                message_id varchar, retain_until timestamptz, at timestamptz, event varchar, worker varchar,
                terminal boolean, attempt integer, seconds double precision, error varchar, sent_at timestamptz
            )
            -- An event gets the keys of its message, whatever the envelope of the delivered copy contains.
            LEFT JOIN LATERAL (
                SELECT opened.retain_until, opened.sent_at FROM waooaw_open_messages AS opened
                WHERE opened.message_id = row.message_id OFFSET 0
            ) AS own ON true
            -- A message in the inbox has committed its effect: it was handled, even if a worker reports a failure.
            CROSS JOIN LATERAL (
                SELECT row.terminal AND row.event NOT IN ('handled', 'published', 'answered') AND EXISTS (
                    SELECT FROM waooaw_inbox WHERE waooaw_inbox.message_id = row.message_id
                ) AS handled OFFSET 0
            ) AS inbox
            ON CONFLICT DO NOTHING
            RETURNING
                waooaw_message_events.message_id, waooaw_message_events.retain_until,
                waooaw_message_events.terminal
        ), closed AS (
            -- The array makes PostgreSQL use the primary key: the planner cannot know how few messages ended.
            DELETE FROM waooaw_open_messages
            WHERE waooaw_open_messages.message_id
                = ANY (ARRAY(SELECT added.message_id FROM added WHERE added.terminal))
            RETURNING waooaw_open_messages.message_id
        )
        SELECT array_agg(added.message_id), array_agg(added.retain_until), (SELECT count(*) FROM closed)
        INTO ended_ids, ended_retain_until, closed_count FROM added WHERE added.terminal;
        IF cardinality(ended_ids) > closed_count THEN
            -- Some were not open: their sender did not write them, or they had ended before. The first end counts.
            ended_ids := ARRAY(SELECT waooaw_only_ends(ended_ids, ended_retain_until));
        END IF;
        IF cardinality(ended_ids) > 0 THEN
            RETURN QUERY SELECT one, 'ended'::varchar FROM unnest(ended_ids) AS one;
        END IF;
    END IF;
END $$
"""
