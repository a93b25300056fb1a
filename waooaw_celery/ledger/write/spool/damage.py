"""Handles a spool file that SQLite cannot read: it is moved aside, and its readable rows are salvaged."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from waooaw_celery.ledger.write.spool.file_lock import FileLock, try_lock
from waooaw_celery.ledger.write.spool.salvage import readable_rows, sibling
from waooaw_celery.ledger.write.spool.table import SpoolRow
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.wording import counted

logger = get_logger(__name__)

#: Damaged files that are kept. If there are more, the cause is one that a new file does not repair.
MAX_KEPT = 100
#: Rows that are written to the new spool in one transaction.
_BATCH_ROWS = 500
#: SQLite's error codes for a damaged file. SQLITE_ERROR: the file does not have the spool's table.
_DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR)
#: SQLite's extended error codes for a disk that does not return what was written to it.
_READ_ERROR_CODES = (
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
)


class NotARegularFile(OSError):
    """The spool's path is not a regular file."""


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A damaged spool file that was moved aside.

    Attributes:
        path: its path.
        size: its size in bytes.
        salvaged: whether its readable rows were copied to the new spool.
    """

    path: str
    size: int
    salvaged: bool


def is_damage(error: Exception) -> bool:
    """Whether an error means that the file is damaged, and not that it is out of reach or the disk is full."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, NotARegularFile) or (
        code is not None and (code & 0xFF in _DAMAGE_CODES or code in _READ_ERROR_CODES)
    )


class DamagedFiles:
    """The damaged files of one spool.

    Args:
        path: the spool file.
        lock: the lock that every user of the spool file holds.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self._path, self._lock = path, lock

    def move_aside(self, inode: int | None, error: Exception) -> None:
        """Rename a damaged file, unless another process has done so.

        Args:
            inode: the inode of the damaged file.
            error: SQLite's error, for the log.

        Raises:
            OSError: the file cannot be renamed, or ``MAX_KEPT`` damaged files exist.
        """
        with self._lock.held(exclusive=True):
            if inode is None or inode_of(self._path) != inode:
                return
            if len(self.find()) >= MAX_KEPT:
                raise OSError(f"it is damaged ({error}), and {MAX_KEPT} damaged files are kept: remove them")
            stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}"
            target = self._path.with_name(f"{self._path.stem}.damaged-{stamp}.sqlite3")
            # The journal first: a new spool must never use the journal of the old one.
            with suppress(FileNotFoundError):
                sibling(self._path, "-wal").rename(sibling(target, "-wal"))
            sibling(self._path, "-shm").unlink(missing_ok=True)
            self._path.rename(target)
        logger.warning(
            "the spool %s is damaged (%s): it was renamed to %s, and a new spool was started",
            self._path,
            error,
            target,
            extra={"action": "spool_damaged"},
        )

    def find(self) -> list[DamagedFile]:
        """Return the files that were moved aside, the oldest first."""
        files = []
        for state in ("damaged", "salvaged"):
            for path in self._path.parent.glob(f"{self._path.stem}.{state}-*.sqlite3"):
                with suppress(FileNotFoundError):
                    files.append(DamagedFile(str(path), path.stat().st_size, state == "salvaged"))
        return sorted(files, key=lambda file: file.path.partition(".")[2].partition("-")[2])

    def salvage(self, add: Callable[[Sequence[SpoolRow]], None]) -> None:
        """Copy the readable rows of files that were not salvaged yet. If the process dies, the next one starts
        again.

        Args:
            add: adds rows to the new spool.

        Raises:
            OSError: a file cannot be copied or renamed.
            SpoolUnavailable: the new spool cannot be written.
        """
        for file in self.find():
            if not file.salvaged:
                self._salvage_file(Path(file.path), add)

    def _salvage_file(self, path: Path, add: Callable[[Sequence[SpoolRow]], None]) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # another process has salvaged it
            return
        try:
            if not try_lock(descriptor, fcntl.LOCK_EX):  # another process is salvaging it
                return
            count = _copy_rows(path, add) if path.is_file() else 0
            salvaged = path.with_name(path.name.replace(".damaged-", ".salvaged-"))
            with suppress(FileNotFoundError):
                sibling(path, "-wal").rename(sibling(salvaged, "-wal"))
            with suppress(FileNotFoundError):
                path.rename(salvaged)
        finally:
            os.close(descriptor)
        logger.warning(
            "salvaged %s of the damaged spool. The file is now %s: delete it when you do not need it",
            counted(count, "row"),
            salvaged,
            extra={"action": "spool_salvaged"},
        )


def _copy_rows(path: Path, add: Callable[[Sequence[SpoolRow]], None]) -> int:
    """Copy the readable rows of a damaged file, and return how many there are."""
    count = 0
    batch: list[SpoolRow] = []
    # SQLite writes to files that it only reads. The original must not change, so a copy is read.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="salvage-") as folder:
        copy = Path(folder, "copy.sqlite3")
        shutil.copyfile(path, copy)
        with suppress(FileNotFoundError):
            shutil.copyfile(sibling(path, "-wal"), sibling(copy, "-wal"))
        for row in readable_rows(copy):
            batch.append(row)
            count += 1
            if len(batch) == _BATCH_ROWS:
                add(batch)
                batch = []
        if batch:
            add(batch)
    return count


def inode_of(path: Path) -> int | None:
    """Return the inode of a file, or None if it does not exist. A new file of the same name has another inode."""
    with suppress(FileNotFoundError):
        return path.stat(follow_symlinks=False).st_ino
    return None
