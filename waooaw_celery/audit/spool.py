"""Where entries of the ledger wait on this computer while its database is away: a SQLite file, in order."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from waooaw_celery.audit.entries import Entry
from waooaw_celery.errors import AuditUnavailable, ConfigurationError

#: Seconds that a process waits for another one that is using the file.
_PATIENCE = 5.0


class SpoolUnavailable(AuditUnavailable):
    """The spool's file cannot be used: that says nothing about the database."""


class Spool:
    """A file that all processes of this computer share which write to the same ledger.

    What is in it survives them: the next process that reaches the database ships it.

    Args:
        folder: where the file is; None: a folder of this user's among the system's temporary files.
        database_url: the ledger's; each has a spool of its own.
    """

    def __init__(self, folder: str | None, database_url: str) -> None:
        self._folder = Path(folder or Path(tempfile.gettempdir()) / f"waooaw-spool-{os.getuid()}")
        name = hashlib.sha256(database_url.encode()).hexdigest()[:16]
        self.path = self._folder / f"{name}.sqlite3"

    def check(self) -> None:
        """Check that the file could be written when it is needed.

        Raises:
            ConfigurationError: the folder cannot be made, is somebody else's, or takes no files; or the file is
                no spool.
        """
        try:
            self._check_folder()
            with self._open("write to") as connection:
                connection.execute("BEGIN IMMEDIATE")
        except (OSError, SpoolUnavailable) as error:
            raise ConfigurationError(f"the spool cannot be used: {error}") from error

    def _check_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self._folder.stat()
        # Payloads wait here: nobody else may put a folder or a file of theirs in its place.
        if (
            found.st_uid != os.getuid()
            or stat.S_IMODE(found.st_mode) & 0o022
            or not os.access(self._folder, os.W_OK)
        ):
            raise ConfigurationError(
                f"the spool's folder {self._folder} must belong to this user, and only this user may write to it: "
                "set waooaw_spool_folder to such a folder"
            )

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries, on the disk when this returns.

        Raises:
            SpoolUnavailable: the file cannot be written.
        """
        with self._open("write to") as connection:
            rows = [(entry.kind, entry.message_id, entry.text) for entry in entries]
            connection.executemany("INSERT INTO spool (kind, message_id, text) VALUES (?, ?, ?)", rows)

    def first(self, count: int, characters: int, after: int = 0) -> list[tuple[int, Entry]]:
        """Return the oldest entries that wait, behind a number, each with its own.

        Args:
            count: how many at most.
            characters: how long they may be together; the first is returned however long it is.
            after: number of the entry behind which to begin.

        Raises:
            SpoolUnavailable: the file cannot be read.
        """
        if not self.path.exists():
            return []
        found: list[tuple[int, Entry]] = []
        with self._open("read") as connection:
            rows = connection.execute(
                "SELECT id, kind, message_id, text FROM spool "
                "WHERE refused IS NULL AND id > ? ORDER BY id LIMIT ?",
                (after, count),
            )
            for id_, kind, message_id, text in rows:
                characters -= len(text)
                if found and characters < 0:
                    break
                found.append((id_, Entry(kind, message_id, text)))
        return found

    def message_ids(self) -> set[str]:
        """Return the ids of the messages about which something waits.

        Raises:
            SpoolUnavailable: the file cannot be read.
        """
        if not self.path.exists():
            return set()
        with self._open("read") as connection:
            rows = connection.execute("SELECT DISTINCT message_id FROM spool WHERE refused IS NULL")
            return {message_id for (message_id,) in rows}

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove entries that are in the ledger now.

        Raises:
            SpoolUnavailable: the file cannot be written.
        """
        with self._open("write to") as connection:
            connection.executemany("DELETE FROM spool WHERE id = ?", [(number,) for number in numbers])

    def refuse(self, number: int, reason: str) -> None:
        """Put aside an entry that the database will never take, with the reason: it is kept, not tried again.

        Raises:
            SpoolUnavailable: the file cannot be written.
        """
        with self._open("write to") as connection:
            connection.execute("UPDATE spool SET refused = ? WHERE id = ?", (reason, number))

    def counts(self) -> tuple[int, int]:
        """Return how many entries wait, and how many were refused.

        Raises:
            SpoolUnavailable: the file cannot be read.
        """
        if not self.path.exists():
            return 0, 0
        with self._open("read") as connection:
            waiting, refused = connection.execute(
                "SELECT count(*) FILTER (WHERE refused IS NULL), count(refused) FROM spool"
            ).fetchone()
            return waiting, refused

    def refusals(self, count: int) -> list[tuple[Entry, str]]:
        """Return the entries that were refused last, the newest first, each with the reason.

        Args:
            count: how many at most.

        Raises:
            SpoolUnavailable: the file cannot be read.
        """
        if not self.path.exists():
            return []
        with self._open("read") as connection:
            rows = connection.execute(
                "SELECT kind, message_id, text, refused FROM spool "
                "WHERE refused IS NOT NULL ORDER BY id DESC LIMIT ?",
                (count,),
            )
            return [(Entry(kind, message_id, text), refused) for kind, message_id, text, refused in rows]

    @contextmanager
    def _open(self, what: str) -> Iterator[sqlite3.Connection]:
        try:
            self._check_folder()
            if not self.path.exists():  # SQLite would let others read it
                os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
            with closing(sqlite3.connect(self.path, timeout=_PATIENCE)) as connection:
                _prepare(connection)
                with connection:
                    yield connection
        except (OSError, ValueError, sqlite3.Error) as error:
            raise SpoolUnavailable(f"could not {what} the spool {self.path}: {error}") from error


def _prepare(connection: sqlite3.Connection) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS spool (id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, "
                "message_id TEXT NOT NULL, text TEXT NOT NULL, refused TEXT)"
            )
        except sqlite3.OperationalError as error:
            # SQLite does not wait by itself for another process that is making the same file.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
