"""The table of a spool file."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Sequence
from typing import TypeAlias

#: The columns kind, message_id, text and refused: the reason why the database never accepts the row, or None.
SpoolRow: TypeAlias = tuple[str, str, str, str | None]

#: Characters that are written and removed again, to find out whether the disk has room.
_PROBE_CHARACTERS = 256 * 1024
#: A row id that no row has.
_PROBE_ID = -1


def create_table(connection: sqlite3.Connection) -> None:
    """Create the table if it does not exist."""
    connection.execute(
        "CREATE TABLE IF NOT EXISTS spool (id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, "
        "message_id TEXT NOT NULL, text TEXT NOT NULL, refused TEXT)"
    )
    if not connection.execute("SELECT 1 FROM sqlite_sequence WHERE name = 'spool'").fetchone():
        # Row ids start at a random number, so that no two files share ids: a process that read rows from one file
        # may remove them from its successor.
        connection.execute(
            "INSERT INTO sqlite_sequence SELECT 'spool', ? "
            "WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'spool')",
            (secrets.randbelow(2**40) << 20,),
        )


def insert_rows(connection: sqlite3.Connection, rows: Sequence[SpoolRow]) -> None:
    """Append rows."""
    connection.executemany("INSERT INTO spool (kind, message_id, text, refused) VALUES (?, ?, ?, ?)", rows)


def probe_room(connection: sqlite3.Connection) -> None:
    """Write some characters and remove them again, to find out whether the disk has room."""
    connection.execute(
        "INSERT OR REPLACE INTO spool VALUES (?, 'probe', '', ?, 'a probe')", (_PROBE_ID, " " * _PROBE_CHARACTERS)
    )
    connection.commit()
    connection.execute("DELETE FROM spool WHERE id = ?", (_PROBE_ID,))


def prepare_file(connection: sqlite3.Connection, timeout: float) -> None:
    """Set the journal mode and create the table if it does not exist.

    Args:
        connection: a connection to the file, outside of a transaction.
        timeout: seconds to wait for another process that creates the same file.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            with connection:
                create_table(connection)
        except sqlite3.OperationalError as error:
            # SQLite's own timeout does not cover another process that creates the same file.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
