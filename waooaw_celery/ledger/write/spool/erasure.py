"""Erasure in the spool: blanks payloads and error texts in rows that wait there, or that the ledger refused."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any, NamedTuple

from waooaw_celery.ledger.database.rows import LedgerRow
from waooaw_celery.ledger.database.sqlite.compaction import compact_file

#: What replaces the reason of a refused row, which may quote it.
ERASED_REASON = "the ledger refused it; why was erased"
#: The columns of a message, and of a fact, that are blanked.
_BLANKED = ("payload", "options", "error")


class SpoolErasure(NamedTuple):
    """What an erasure did in a spool.

    Attributes:
        blanked: how many rows it blanked.
        waiting: how many selected messages keep their payload, because they wait for the ledger.
        compacted: whether the file has no old contents any more.
    """

    blanked: int = 0
    waiting: int = 0
    compacted: bool = True


def erase_rows(connection: sqlite3.Connection, is_selected: Callable[[LedgerRow], bool]) -> SpoolErasure:
    """Blank rows, and remove what earlier rows have left in the file.

    Args:
        connection: a connection to the spool.
        is_selected: whether to blank a row.
    """
    blanked, waiting = _blank_rows(connection, is_selected)
    connection.commit()
    return SpoolErasure(blanked, waiting, compact_file(connection.execute))


def _blank_rows(connection: sqlite3.Connection, is_selected: Callable[[LedgerRow], bool]) -> tuple[int, int]:
    """Blank rows, and return how many, and how many messages wait.

    A message that waits keeps its payload: it would be written and published without it. It is erased from the
    ledger, where it will be in a moment.
    """
    query = "SELECT id, kind, message_id, text, refused FROM spool WHERE id > 0 ORDER BY id"
    blanked = waiting = 0
    for row_id, kind, message_id, text, refused in connection.execute(query).fetchall():
        row = LedgerRow(kind, message_id, text)
        if kind == "refusal" or not is_selected(row):
            continue
        if kind == "message" and refused is None:
            waiting += 1
            continue
        rest, reason = _blanked(text), refused and ERASED_REASON
        if (rest, reason) != (text, refused):
            connection.execute("UPDATE spool SET text = ?, refused = ? WHERE id = ?", (rest, reason, row_id))
            blanked += 1
    return blanked, waiting


def _blanked(text: str) -> str:
    """Return a row without its payload and error; an unreadable row is emptied."""
    try:
        columns: dict[str, Any] = json.loads(text)
        parts = [columns, columns.get("message")]
        for part in parts:
            for name in _BLANKED:
                if isinstance(part, dict) and part.get(name) is not None:
                    part[name] = "null" if name == "payload" else None
            event = part.get("event") if isinstance(part, dict) else None
            if isinstance(part, dict) and isinstance(event, str) and event.startswith("{"):
                attributes = json.loads(event)
                part["event"] = json.dumps({name: attributes[name] for name in attributes if name != "subject"})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return "{}"
    return json.dumps(columns)
