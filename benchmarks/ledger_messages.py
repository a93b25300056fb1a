"""Fills a ledger with messages and events of the last days, for the benchmark of the ledger."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import PrimaryKeyConstraint, text
from sqlalchemy.schema import AddConstraint, DropConstraint

from benchmarks.payload import PAYLOAD
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.models import MessageEventRow, MessageRow

DAYS = 10
AGENTS = 50
#: The newest messages, which are open.
IN_FLIGHT = 5_000

#: One row for each message: its number, its keys, and random numbers from 0 to 1 that select its type, times and
#: status. They depend on the number only, so that each run has the same messages.
_PROFILES = """
CREATE UNLOGGED TABLE profiles AS
SELECT number, id(number) AS message_id, sent_at, kind, work, status,
    CASE WHEN kept < 0.80 THEN sent_at + interval '90 days'
         WHEN kept < 0.90 THEN sent_at + interval '30 days'
         WHEN kept < 0.98 THEN sent_at + interval '365 days'
         ELSE timestamptz '9999-12-31 00:00+00' END AS retain_until
FROM (
    SELECT number, :begin + number * (interval '1 day' * :days / :messages) AS sent_at,
        chance(number, 1) AS kind, chance(number, 2) AS work, chance(number, 3) AS kept,
        CASE WHEN number >= :messages - :in_flight OR number % 1000 = 1
             THEN (ARRAY['pending', 'sent', 'sent', 'delivered'])[1 + floor(chance(number, 1) * 4)]
             WHEN chance(number, 1) < 0.93 THEN 'handled'
             WHEN chance(number, 1) < 0.97 THEN 'failed'
             ELSE 'expired' END AS status
    FROM generate_series(0, :messages - 1) AS number
) AS chosen
"""
_FUNCTIONS = (
    "CREATE FUNCTION id(number bigint) RETURNS text IMMUTABLE LANGUAGE sql RETURN md5(number::text)::uuid::text",
    # A hash spreads consecutive numbers evenly over 0 to 1.
    "CREATE FUNCTION chance(number bigint, salt integer) RETURNS float8 IMMUTABLE LANGUAGE sql "
    "RETURN (hashint8extended(number, salt) & 1048575) / 1048576.0",
)
_MESSAGES = """
INSERT INTO waooaw_messages (
    message_id, retain_until, from_agent, to_agent, handler, message_type, priority, correlation_id,
    conversation_id, causation_id, sent_at, expires_at, payload, payload_digest
)
SELECT message_id, retain_until, 'agent-' || floor(chance(number, 4) * :agents),
    'agent-' || floor(chance(number, 5) * :agents), 'command',
    CASE WHEN kind < 0.70 THEN 'command' WHEN kind < 0.90 THEN 'query' WHEN kind < 0.99 THEN 'response'
         ELSE 'ack' END,
    CASE WHEN work < 0.01 THEN 0 WHEN work < 0.1 THEN 3 WHEN work < 0.9 THEN 6 ELSE 9 END,
    id(number - number % 4), id(number - number % 4), CASE WHEN number % 4 > 0 THEN id(number - 1) END, sent_at,
    -- Messages that stay open have no expiry.
    CASE WHEN number % 1000 <> 1 THEN sent_at + interval '80 minutes' END,
    (:head || message_id || :middle || CASE WHEN number % 10000 = 7 THEN 'Lighthouse' ELSE 'research' END
        || :tail)::json,
    repeat('0', 32) || md5(number::text)
FROM profiles
"""
_EVENTS = """
INSERT INTO waooaw_message_events (
    message_id, retain_until, at, event, worker, terminal, attempt, seconds, error, sent_at
)
SELECT message_id, retain_until, sent_at + interval '1 second' * after, event, worker, terminal, attempt, seconds,
    error, sent_at
FROM profiles, LATERAL (
    SELECT 'sent' AS event, '' AS worker, false AS terminal, 0 AS attempt, NULL::float8 AS seconds,
        NULL::text AS error, 0.001 AS after
        WHERE status <> 'pending'
    UNION ALL SELECT 'delivered', 'worker@host', false, 1, work, NULL, work
        WHERE status IN ('delivered', 'handled', 'failed')
    UNION ALL SELECT 'retried', 'worker@host', false, 1, work, 'TimeoutError: the model did not answer', work + 1
        WHERE status IN ('handled', 'failed') AND work < 0.04
    UNION ALL SELECT 'delivered', 'worker@host', false, 2, NULL, NULL, work + 2
        WHERE status IN ('handled', 'failed') AND work < 0.04
    UNION ALL SELECT status, 'worker@host', true, 1, work * 3, CASE status WHEN 'failed' THEN 'ValueError: no' END,
        work * 4 + 2
        WHERE status IN ('handled', 'failed')
    UNION ALL SELECT 'expired', '', true, 0, NULL, NULL, 4805
        WHERE status = 'expired'
) AS fact
"""
_OPEN = """
INSERT INTO waooaw_open_messages (message_id, retain_until, sent_at, expires_at, from_agent, to_agent)
SELECT message_id, retain_until, sent_at, expires_at, from_agent, to_agent FROM profiles JOIN waooaw_messages
    USING (message_id, retain_until, sent_at)
WHERE status IN ('pending', 'sent', 'delivered')
"""


def fill(database: Database, messages: int, now: datetime) -> None:
    """Insert the messages and events of the last days."""
    head, middle, tail = _payload_parts()
    parameters = {
        "begin": now - timedelta(days=DAYS),
        "days": DAYS,
        "messages": messages,
        "in_flight": IN_FLIGHT,
        "agents": AGENTS,
        "head": head,
        "middle": middle,
        "tail": tail,
    }
    tables: list[Any] = [MessageRow.__table__, MessageEventRow.__table__]
    keys = [PrimaryKeyConstraint(*table.primary_key, name=f"{table.name}_pkey") for table in tables]
    with database.begin("fill the ledger", timeout=7200) as connection:
        connection.exec_driver_sql("SET LOCAL maintenance_work_mem = '512MB'")
        for function in _FUNCTIONS:
            connection.exec_driver_sql(function)
        # Creating the indexes at the end takes a fraction of the time.
        for table, key in zip(tables, keys, strict=True):
            connection.execute(DropConstraint(key))
            for index in table.indexes:
                index.drop(connection)
        for statement in (_PROFILES, _MESSAGES, _EVENTS, _OPEN):
            connection.execute(text(statement), parameters)
        connection.exec_driver_sql("DROP TABLE profiles")
        for table, key in zip(tables, keys, strict=True):
            connection.execute(AddConstraint(key))
            for index in table.indexes:
                index.create(connection)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("SET statement_timeout = 0")
        # PostgreSQL would do this later by itself.
        connection.exec_driver_sql("VACUUM ANALYZE")
        connection.exec_driver_sql("ANALYZE waooaw_messages, waooaw_message_events")
        connection.exec_driver_sql("CHECKPOINT")
        connection.invalidate()


def _payload_parts() -> tuple[str, str, str]:
    """Return the text of a payload before the task's id, up to the tenant, and after it."""
    written = json.dumps(PAYLOAD | {"requested_by": {"name": "dashboard", "user": "ada.lovelace", "tenant": "#"}})
    head, rest = written.split(PAYLOAD["task_id"])  # type: ignore[arg-type]
    middle, tail = rest.split("#")
    return head, middle, tail


def message_id(number: int) -> str:
    """Return the id of a message by its number."""
    return str(UUID(bytes=hashlib.md5(str(number).encode(), usedforsecurity=False).digest()))
