"""Where entries of the ledger wait on this computer while its database is away: a SQLite file, in order."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Sequence, Set
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from waooaw_celery.errors import AuditUnavailable, ConfigurationError
from waooaw_celery.ledger.database.rows import LedgerRow
from waooaw_celery.ledger.write.spool_damage import (
    Damage,
    DamagedFile,
    FileLock,
    NotARegularFile,
    Row,
    create,
    inode_of,
    is_damage,
)

#: Seconds that a process waits for another one that is using the file.
_PATIENCE = 5.0
#: Characters that are written, and removed again, to find out whether there is room.
_PROBE = 256 * 1024
#: A rowid that no entry has.
_PROBE_ID = -1

Result = TypeVar("Result")


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
        self._lock = FileLock(self._folder / f"{name}.lock", _PATIENCE)
        self._damage = Damage(self.path, self._lock)

    def check(self) -> None:
        """Check that the file could be written when it is needed. A damaged one is put aside.

        Raises:
            ConfigurationError: the folder cannot be made, is somebody else's, or takes no files.
        """
        try:
            self._check_folder()
            self._do("write to", lambda connection: connection.execute("BEGIN IMMEDIATE"))
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

    def append(self, entries: Sequence[LedgerRow]) -> None:
        """Add entries, on the disk when this returns.

        Raises:
            SpoolUnavailable: the file cannot be written.
        """
        rows = [(entry.kind, entry.message_id, entry.text, None) for entry in entries]
        self._do("write to", lambda connection: _insert(connection, rows))

    def check_room(self) -> None:
        """Find out whether entries could be written now.

        Raises:
            SpoolUnavailable: they could not.
        """

        def probe(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO spool VALUES (?, 'probe', '', ?, 'a probe')", (_PROBE_ID, " " * _PROBE)
            )
            connection.commit()
            connection.execute("DELETE FROM spool WHERE id = ?", (_PROBE_ID,))

        self._do("write to", probe)

    def damaged(self) -> list[DamagedFile]:
        """Return the damaged files that were put aside, the oldest first.

        Raises:
            SpoolUnavailable: the folder cannot be read.
        """
        try:
            return self._damage.kept()
        except OSError as error:
            raise SpoolUnavailable(f"could not read the folder {self._folder}: {error}") from error

    def salvage(self) -> None:
        """Bring back what can be read of the damaged files that were put aside.

        Raises:
            SpoolUnavailable: a file cannot be read, or the spool cannot be written.
        """

        def add(rows: Sequence[Row]) -> None:
            self._do("write to", lambda connection: _insert(connection, rows))

        try:
            self._damage.salvage(add)
        except OSError as error:
            raise SpoolUnavailable(f"could not salvage a damaged spool in {self._folder}: {error}") from error

    def first(self, count: int, characters: int, after: int = 0) -> list[tuple[int, LedgerRow]]:
        """Return the oldest entries that wait, behind a number, each with its own.

        Args:
            count: how many at most.
            characters: how long they may be together; the first is returned however long it is.
            after: number of the entry behind which to begin.

        Raises:
            SpoolUnavailable: the file cannot be read.
        """

        def read(connection: sqlite3.Connection) -> list[tuple[int, LedgerRow]]:
            left = characters
            found: list[tuple[int, LedgerRow]] = []
            rows = connection.execute(
                "SELECT id, kind, message_id, text FROM spool "
                "WHERE refused IS NULL AND id > ? ORDER BY id LIMIT ?",
                (after, count),
            )
            for id_, kind, message_id, text in rows:
                left -= len(text) if isinstance(text, str) else 0  # a damaged file may hold anything
                if found and left < 0:
                    break
                found.append((id_, LedgerRow(kind, message_id, text)))
            return found

        return self._read(read, [])

    def message_ids(self) -> set[str]:
        """Return the ids of the messages about which something waits.

        Raises:
            SpoolUnavailable: the file cannot be read.
        """
        question = "SELECT DISTINCT message_id FROM spool WHERE refused IS NULL"
        return self._read(lambda connection: {message_id for (message_id,) in connection.execute(question)}, set())

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove entries that are in the ledger now.

        Raises:
            SpoolUnavailable: the file cannot be written.
        """
        rows = [(number,) for number in numbers]
        self._do("write to", lambda connection: connection.executemany("DELETE FROM spool WHERE id = ?", rows))

    def drop(self, numbers: Set[int]) -> bool:
        """Remove the file when nothing is in it but these entries, and return whether that is so.

        SQLite needs room to remove an entry, and none is left on a disk that the spool has filled.

        Args:
            numbers: of entries that are in the ledger now.

        Raises:
            SpoolUnavailable: the file cannot be read or removed.
        """
        try:
            with self._lock.held(alone=True):
                with closing(sqlite3.connect(self.path, timeout=_PATIENCE)) as connection:
                    there = {number for (number,) in connection.execute("SELECT id FROM spool WHERE id > 0")}
                if there <= numbers:
                    for ending in ("-wal", "-shm", ""):
                        Path(f"{self.path}{ending}").unlink(missing_ok=True)
                return there <= numbers
        except (OSError, sqlite3.Error) as error:
            raise SpoolUnavailable(f"could not remove the spool {self.path}: {error}") from error

    def refuse(self, number: int, reason: str) -> None:
        """Put aside an entry that the database will never take, with the reason: it is kept, not tried again.

        Raises:
            SpoolUnavailable: the file cannot be written.
        """
        change = "UPDATE spool SET refused = ? WHERE id = ?"
        self._do("write to", lambda connection: connection.execute(change, (reason, number)))

    def counts(self) -> tuple[int, int]:
        """Return how many entries wait, and how many were refused.

        Raises:
            SpoolUnavailable: the file cannot be read.
        """
        question = "SELECT count(*) FILTER (WHERE refused IS NULL), count(refused) FROM spool WHERE id > 0"

        def read(connection: sqlite3.Connection) -> tuple[int, int]:
            waiting, refused = connection.execute(question).fetchone()
            return waiting, refused

        return self._read(read, (0, 0))

    def refusals(self, count: int) -> list[tuple[LedgerRow, str]]:
        """Return the entries that were refused last, the newest first, each with the reason.

        Args:
            count: how many at most.

        Raises:
            SpoolUnavailable: the file cannot be read.
        """
        question = (
            "SELECT kind, message_id, text, refused FROM spool "
            "WHERE refused IS NOT NULL AND id > 0 ORDER BY id DESC LIMIT ?"
        )

        def read(connection: sqlite3.Connection) -> list[tuple[LedgerRow, str]]:
            rows = connection.execute(question, (count,))
            return [(LedgerRow(kind, message_id, text), refused) for kind, message_id, text, refused in rows]

        return self._read(read, [])

    def _read(self, operation: Callable[[sqlite3.Connection], Result], nothing: Result) -> Result:
        """Read the file, if there is one."""
        found: Result = self._do("read", operation, nothing)
        return found

    def _do(self, what: str, operation: Callable[[sqlite3.Connection], Any], nothing: Any = None) -> Any:
        """Do something with the file; when it is damaged, with the new one that takes its place.

        Args:
            what: is done, for an error's sentence.
            operation: which, in a transaction.
            nothing: what to return when there is no file; None: it is made.
        """
        inode: int | None = None
        try:
            inode = inode_of(self.path)
            if nothing is not None and inode is None:
                return nothing
            self._check_folder()
            try:
                return self._attempt(operation)
            except (NotARegularFile, sqlite3.Error) as error:
                if not is_damage(error):
                    raise
                self._damage.put_aside(inode, error)
                return self._attempt(operation)
        except (OSError, ValueError, sqlite3.Error) as error:
            raise SpoolUnavailable(f"could not {what} the spool {self.path}: {error}") from error

    def _attempt(self, operation: Callable[[sqlite3.Connection], Any]) -> Any:
        with self._lock.held(alone=False):
            try:
                if not stat.S_ISREG(self.path.stat().st_mode):
                    raise NotARegularFile(f"{self.path} is no file")
            except FileNotFoundError:  # SQLite would let others read it
                os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
            with closing(sqlite3.connect(self.path, timeout=_PATIENCE)) as connection:
                connection.text_factory = _text
                _prepare(connection)
                with connection:
                    return operation(connection)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")  # what is damaged in it is told by whoever reads it


def _insert(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    connection.executemany("INSERT INTO spool (kind, message_id, text, refused) VALUES (?, ?, ?, ?)", rows)


def _prepare(connection: sqlite3.Connection) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            with connection:
                create(connection)
        except sqlite3.OperationalError as error:
            # SQLite does not wait by itself for another process that is making the same file.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
