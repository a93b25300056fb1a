"""Removes what SQLite leaves in its files of rows that were changed or deleted."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any

from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Seconds for which a compaction waits for other users of the file, and the seconds between two attempts.
DEADLINE_SECONDS = 30.0
_PAUSE_SECONDS = 0.2


def compact(database: Database) -> bool:
    """Rewrite the file of an SQLite ledger without its old contents, and empty its journal.

    Args:
        database: the ledger's database, which is SQLite.

    Returns:
        Whether it was done; False if another program used the file all the time, or the disk has no room.
    """
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        driver: Any = connection.connection.driver_connection
        return compact_file(driver.execute)


def compact_file(execute: Callable[[str], Any]) -> bool:
    """Do the same over a connection of ``sqlite3`` outside of a transaction.

    A change leaves the old contents in free pages and in the journal. VACUUM copies what is in use to a new file,
    and the checkpoint moves it from the journal to the file and empties the journal.

    Args:
        execute: executes a statement and returns its cursor.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    is_vacuumed = False
    while True:
        try:
            if not is_vacuumed:
                execute("VACUUM")
                is_vacuumed = True
            # The first column says whether somebody else used the journal.
            if not execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                return True
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) and "busy" not in str(error):
                # Everything is erased by now, and only its old contents are left: the caller's report says so.
                logger.warning("SQLite cannot rewrite a file: %s", error, extra={"action": "not_compacted"})
                return False
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_SECONDS)
