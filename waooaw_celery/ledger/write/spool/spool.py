"""The spool of one computer: the file where rows of the ledger wait, in order, while the database is down."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Sequence, Set
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from waooaw_celery.errors import AuditUnavailable, ConfigurationError
from waooaw_celery.ledger.database.rows import LedgerRow
from waooaw_celery.ledger.database.sqlite.connection import SafeConnection
from waooaw_celery.ledger.write.spool.damage import (
    DamagedFile,
    DamagedFiles,
    NotARegularFile,
    inode_of,
    is_damage,
)
from waooaw_celery.ledger.write.spool.erasure import SpoolErasure, erase_rows
from waooaw_celery.ledger.write.spool.file_lock import FileLock
from waooaw_celery.ledger.write.spool.folder import default_folder, unusable_folder
from waooaw_celery.ledger.write.spool.table import SpoolRow, insert_rows, prepare_file, probe_room

#: Seconds to wait for another process that uses the file.
_TIMEOUT = 5.0

Result = TypeVar("Result")


class SpoolUnavailable(AuditUnavailable):
    """The spool file cannot be used. The database may be up or down."""


class Spool:
    """A file that is shared by all processes of this computer that write to the same ledger.

    Its rows survive these processes. The next process that reaches the database writes them to the ledger.

    Args:
        folder: the folder of the file. None: a folder of this user in the system's temporary folder.
        database_url: the URL of the ledger's database. Each database has its own spool.

    Raises:
        ConfigurationError: there is no temporary folder to write to.
    """

    def __init__(self, folder: str | None, database_url: str) -> None:
        self._folder = Path(folder) if folder else default_folder()
        name = hashlib.sha256(database_url.encode()).hexdigest()[:16]
        self.path = self._folder / f"{name}.sqlite3"
        self._lock = FileLock(self._folder / f"{name}.lock", _TIMEOUT)
        self._damaged_files = DamagedFiles(self.path, self._lock)

    def check(self) -> None:
        """Check that the file can be written. A damaged file is moved aside.

        Raises:
            ConfigurationError: the folder cannot be created, belongs to another user, is not writable, or is full.
        """
        try:
            self._check_folder()
            self.check_room()
        except (OSError, SpoolUnavailable) as error:
            raise unusable_folder(self._folder, error) from error

    def _check_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self._folder.stat()
        # The rows contain payloads, so no other user may replace the folder or a file in it.
        if not os.access(self._folder, os.W_OK):
            with tempfile.TemporaryFile(dir=self._folder):  # raises the reason
                pass
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022:
            raise ConfigurationError(
                f"the spool's folder {self._folder} must belong to this user, and only this user may write to it: "
                "set waooaw_spool_folder to such a folder"
            )

    def append(self, rows: Sequence[LedgerRow]) -> None:
        """Append rows. They are on the disk when this returns.

        Raises:
            SpoolUnavailable: the file cannot be written.
        """
        spool_rows = [(row.kind, row.message_id, row.text, None) for row in rows]
        self._run("write to", lambda connection: insert_rows(connection, spool_rows))

    def check_room(self) -> None:
        """Check that rows can be written now, by writing some and removing them again.

        Raises:
            SpoolUnavailable: they cannot be written.
        """
        self._run("write to", probe_room)

    def erase(self, is_selected: Callable[[LedgerRow], bool]) -> SpoolErasure:
        """Blank selected rows, and remove from the file what earlier rows have left in it.

        Raises:
            SpoolUnavailable: the file cannot be written.
        """
        return self._read(lambda connection: erase_rows(connection, is_selected), SpoolErasure())

    def damaged(self) -> list[DamagedFile]:
        """Return the damaged files that were moved aside, the oldest first.

        Raises:
            SpoolUnavailable: the folder cannot be read.
        """
        try:
            return self._damaged_files.find()
        except OSError as error:
            raise SpoolUnavailable(f"could not read the folder {self._folder}: {error}") from error

    def salvage(self) -> None:
        """Copy the readable rows of damaged files to this spool.

        Raises:
            SpoolUnavailable: a damaged file cannot be read, or the spool cannot be written.
        """

        def add(rows: Sequence[SpoolRow]) -> None:
            self._run("write to", lambda connection: insert_rows(connection, rows))

        try:
            self._damaged_files.salvage(add)
        except OSError as error:
            raise SpoolUnavailable(f"could not salvage a damaged spool in {self._folder}: {error}") from error

    def first(self, count: int, characters: int, after: int = 0) -> list[tuple[int, LedgerRow]]:
        """Return the oldest rows that wait, each with its row id.

        Args:
            count: the largest number of rows.
            characters: the largest number of characters in them. The first row is returned even if it is longer.
            after: return only rows with a larger row id.

        Raises:
            SpoolUnavailable: the file cannot be read.
        """

        def read(connection: sqlite3.Connection) -> list[tuple[int, LedgerRow]]:
            remaining = characters
            found: list[tuple[int, LedgerRow]] = []
            rows = connection.execute(
                "SELECT id, kind, message_id, text FROM spool "
                "WHERE refused IS NULL AND id > ? ORDER BY id LIMIT ?",
                (after, count),
            )
            for id_, kind, message_id, text in rows:
                remaining -= len(text) if isinstance(text, str) else 0  # a damaged file may have any type
                if found and remaining < 0:
                    break
                found.append((id_, LedgerRow(kind, message_id, text)))
            return found

        return self._read(read, [])

    def message_ids(self, *, refused: bool = False) -> set[str]:
        """Return the ids of the messages that have rows in the spool that wait, or also of refused rows.

        Raises:
            SpoolUnavailable: the file cannot be read.
        """
        query = "SELECT DISTINCT message_id FROM spool WHERE refused IS NULL OR ?"
        return self._read(
            lambda connection: {message_id for (message_id,) in connection.execute(query, (refused,))}, set()
        )

    def remove(self, row_ids: Sequence[int]) -> None:
        """Remove rows that are in the ledger now.

        Raises:
            SpoolUnavailable: the file cannot be written.
        """
        parameters = [(row_id,) for row_id in row_ids]
        self._run(
            "write to", lambda connection: connection.executemany("DELETE FROM spool WHERE id = ?", parameters)
        )

    def delete_file(self, row_ids: Set[int]) -> bool:
        """Delete the file if it has no other rows than these.

        SQLite needs disk space to remove a row. A spool that has filled its disk can only be deleted.

        Args:
            row_ids: rows that are in the ledger now.

        Returns:
            Whether the file was deleted.

        Raises:
            SpoolUnavailable: the file cannot be read or deleted.
        """
        try:
            with self._lock.held(exclusive=True):
                with closing(sqlite3.connect(self.path, timeout=_TIMEOUT, factory=SafeConnection)) as connection:
                    present = {row_id for (row_id,) in connection.execute("SELECT id FROM spool WHERE id > 0")}
                if present <= row_ids:
                    for suffix in ("-wal", "-shm", ""):
                        Path(f"{self.path}{suffix}").unlink(missing_ok=True)
                return present <= row_ids
        except (OSError, sqlite3.Error) as error:
            raise SpoolUnavailable(f"could not remove the spool {self.path}: {error}") from error

    def refuse(self, row_id: int, reason: str) -> None:
        """Mark a row that the database never accepts. It stays in the file and is not tried again.

        Raises:
            SpoolUnavailable: the file cannot be written.
        """
        statement = "UPDATE spool SET refused = ? WHERE id = ?"
        self._run("write to", lambda connection: connection.execute(statement, (reason, row_id)))

    def counts(self) -> tuple[int, int]:
        """Return the number of rows that wait, and of those that were refused.

        Raises:
            SpoolUnavailable: the file cannot be read.
        """
        query = "SELECT count(*) FILTER (WHERE refused IS NULL), count(refused) FROM spool WHERE id > 0"

        def read(connection: sqlite3.Connection) -> tuple[int, int]:
            waiting, refused = connection.execute(query).fetchone()
            return waiting, refused

        return self._read(read, (0, 0))

    def refusals(self, count: int) -> list[tuple[LedgerRow, str]]:
        """Return the rows that were refused, the newest first, each with the reason.

        Args:
            count: the largest number of rows.

        Raises:
            SpoolUnavailable: the file cannot be read.
        """
        query = (
            "SELECT kind, message_id, text, refused FROM spool "
            "WHERE refused IS NOT NULL AND id > 0 ORDER BY id DESC LIMIT ?"
        )

        def read(connection: sqlite3.Connection) -> list[tuple[LedgerRow, str]]:
            rows = connection.execute(query, (count,))
            return [(LedgerRow(kind, message_id, text), refused) for kind, message_id, text, refused in rows]

        return self._read(read, [])

    def _read(self, operation: Callable[[sqlite3.Connection], Result], default: Result) -> Result:
        """Read the file. Without a file, return the default."""
        result: Result = self._run("read", operation, default)
        return result

    def _run(self, what: str, operation: Callable[[sqlite3.Connection], Any], default: Any = None) -> Any:
        """Run an operation on the file. If the file is damaged, run it on the new file that replaces it.

        Args:
            what: the action in an error message, after "could not".
            operation: what to run, in a transaction.
            default: what to return if the file does not exist. None: create the file.
        """
        inode: int | None = None
        try:
            inode = inode_of(self.path)
            if default is not None and inode is None:
                return default
            self._check_folder()
            try:
                return self._run_once(operation)
            except (NotARegularFile, sqlite3.Error) as error:
                if not is_damage(error):
                    raise
                self._damaged_files.move_aside(inode, error)
                return self._run_once(operation)
        except (OSError, ValueError, sqlite3.Error) as error:
            raise SpoolUnavailable(f"could not {what} the spool {self.path}: {error}") from error

    def _run_once(self, operation: Callable[[sqlite3.Connection], Any]) -> Any:
        with self._lock.held(exclusive=False):
            try:
                if not stat.S_ISREG(self.path.stat().st_mode):
                    raise NotARegularFile(f"{self.path} is not a regular file")
            except FileNotFoundError:  # SQLite would create a file that other users can read
                os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
            with closing(sqlite3.connect(self.path, timeout=_TIMEOUT, factory=SafeConnection)) as connection:
                connection.text_factory = _decode
                prepare_file(connection, _TIMEOUT)
                with connection:
                    return operation(connection)


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")  # the reader of a damaged row detects the replacement
