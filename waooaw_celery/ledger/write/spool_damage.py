"""A spool file that SQLite can no longer read: put aside under another name, and salvaged row by row."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias, get_args

from waooaw_celery.ledger.database.rows import RowKind

logger = logging.getLogger(__name__)

#: Damaged files that are kept; with more of them something is wrong that a new file does not mend.
MAX_KEPT = 100
#: Rows written to the new spool in one transaction, and ids that are tried one by one between damaged pages.
_ROWS, _MAX_IDS = 500, 1_000_000
_PAGE = 4096  # bytes, SQLite's default
_ALL = "SELECT id, kind, message_id, text, refused FROM spool"
#: What SQLite says of a file that is damaged. The last ones: of a disk that no longer gives back what is on it.
_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR)
_IO_CODES = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)
#: Why an entry is not shipped of which only a part can be read.
DAMAGED = "it was damaged in the spool file"

#: kind, message id, text, and why it was refused.
Row: TypeAlias = tuple[str, str, str, str | None]


class NotARegularFile(OSError):
    """Something else than a file has the spool's name."""


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A spool file that was put aside.

    Attributes:
        path: where it is kept.
        size: of the file, in bytes.
        salvaged: whether what can be read of it is in the spool again.
    """

    path: str
    size: int
    salvaged: bool


def is_damage(error: Exception) -> bool:
    """Whether an error says that the file is damaged, and not that it cannot be reached or has no room."""
    code = getattr(error, "sqlite_errorcode", None)
    # SQLITE_ERROR: our statements do not fit its tables, so that it is no spool.
    return isinstance(error, NotARegularFile) or (
        code is not None and (code & 0xFF in _CODES or code in _IO_CODES)
    )


class FileLock:
    """A lock that the processes of a computer share, which ends with the process that holds it.

    Args:
        path: of the file that stands for it; another one beside it keeps newcomers out while somebody waits to be
            alone.
        patience: seconds after which nobody waits any longer.
    """

    def __init__(self, path: Path, patience: float) -> None:
        self._path, self._patience = path, patience

    @contextmanager
    def held(self, *, alone: bool) -> Iterator[None]:
        """Hold it while the block runs: alone, or together with others who do not want to be alone.

        Raises:
            OSError: the files cannot be made.
            TimeoutError: others held it too long.
        """
        mode = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        with ExitStack() as gate, ExitStack() as lock:
            gate.enter_context(self._flock(self._path.with_suffix(".gate"), mode))
            lock.enter_context(self._flock(self._path, mode))
            if not alone:
                gate.close()
            yield

    @contextmanager
    def _flock(self, path: Path, mode: int) -> Iterator[None]:
        file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            deadline = time.monotonic() + self._patience
            while not _lock(file, mode):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process holds {path} for more than {self._patience:g} s")
                time.sleep(0.005)
            try:
                yield
            finally:
                # A child that was forked meanwhile has the descriptor too: closing ours would not unlock it.
                fcntl.flock(file, fcntl.LOCK_UN)
        finally:
            os.close(file)


def _lock(file: int, mode: int) -> bool:
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Damage:
    """What is done about a damaged spool file.

    Args:
        path: of the spool.
        lock: which everybody shares who uses the spool.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self._path, self._lock = path, lock

    def put_aside(self, inode: int | None, error: Exception) -> None:
        """Give a damaged file another name, unless another process has done so.

        Args:
            inode: of the file that is damaged.
            error: what SQLite says of it.

        Raises:
            OSError: it cannot be renamed, or too many are kept.
        """
        with self._lock.held(alone=True):
            if inode is None or inode_of(self._path) != inode:
                return
            if len(self.kept()) >= MAX_KEPT:
                raise OSError(f"it is damaged ({error}), and {MAX_KEPT} damaged files are kept: remove them")
            stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}"
            aside = self._path.with_name(f"{self._path.stem}.damaged-{stamp}.sqlite3")
            # The journal first: a new spool must never be given the old one's.
            with suppress(FileNotFoundError):
                _beside(self._path, "-wal").rename(_beside(aside, "-wal"))
            _beside(self._path, "-shm").unlink(missing_ok=True)
            self._path.rename(aside)
        logger.warning(
            "the spool %s is damaged (%s): it is kept as %s, and a new one is begun",
            self._path,
            error,
            aside,
            extra={"action": "spool_damaged"},
        )

    def kept(self) -> list[DamagedFile]:
        """Return the files that were put aside, the oldest first."""
        found = []
        for state in ("damaged", "salvaged"):
            for path in self._path.parent.glob(f"{self._path.stem}.{state}-*.sqlite3"):
                with suppress(FileNotFoundError):
                    found.append(DamagedFile(str(path), path.stat().st_size, state == "salvaged"))
        return sorted(found, key=lambda file: file.path.partition(".")[2].partition("-")[2])

    def salvage(self, add: Callable[[Sequence[Row]], None]) -> None:
        """Read what can be read of the files that were put aside. Whoever dies meanwhile has it read again.

        Args:
            add: writes rows to the new spool.

        Raises:
            OSError: a file cannot be copied or renamed.
            SpoolUnavailable: the new spool cannot be written.
        """
        for file in self.kept():
            if not file.salvaged:
                self._salvage(Path(file.path), add)

    def _salvage(self, path: Path, add: Callable[[Sequence[Row]], None]) -> None:
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # another process was faster
            return
        try:
            if not _lock(handle, fcntl.LOCK_EX):  # another process is at it
                return
            count = 0
            batch: list[Row] = []
            if path.is_file():
                # SQLite writes also to what it only reads: the original stays as it is.
                with tempfile.TemporaryDirectory(dir=path.parent, prefix="salvage-") as folder:
                    copy = Path(folder, "copy.sqlite3")
                    shutil.copyfile(path, copy)
                    with suppress(FileNotFoundError):
                        shutil.copyfile(_beside(path, "-wal"), _beside(copy, "-wal"))
                    for row in rows_of(copy):
                        batch.append(row)
                        count += 1
                        if len(batch) == _ROWS:
                            add(batch)
                            batch = []
                    if batch:
                        add(batch)
            done = path.with_name(path.name.replace(".damaged-", ".salvaged-"))
            with suppress(FileNotFoundError):
                _beside(path, "-wal").rename(_beside(done, "-wal"))
            with suppress(FileNotFoundError):
                path.rename(done)
        finally:
            os.close(handle)
        logger.warning(
            "%d entries of the damaged spool were salvaged; it is kept as %s: remove it when nobody needs it",
            count,
            done,
            extra={"action": "spool_salvaged"},
        )


def inode_of(path: Path) -> int | None:
    """Return what tells a file from a later one of the same name, or None when there is none."""
    with suppress(FileNotFoundError):
        return path.stat(follow_symlinks=False).st_ino
    return None


def rows_of(path: Path) -> Iterator[Row]:
    """Return what can be read of a damaged spool, which is changed by that.

    Args:
        path: of a copy.
    """
    if not _opens(path):
        _mend_first_page(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        # From both ends up to what is damaged; then one by one, since there may be more in between.
        upwards = _Reading(connection, f"{_ALL} ORDER BY id")
        yield from upwards
        if upwards.complete:
            return
        downwards = _Reading(connection, f"{_ALL} ORDER BY id DESC", until=upwards.last)
        yield from downwards
        if not downwards.complete:
            for id_ in _between(connection, upwards.last, downwards.last):
                yield from _Reading(connection, f"{_ALL} WHERE id = {id_:d}")


class _Reading:
    """Rows up to one that is known, or that cannot be read."""

    def __init__(self, connection: Any, question: str, until: int | None = None) -> None:
        self._connection, self._question, self._until = connection, question, until
        self.last: int | None = None
        self.complete = False

    def __iter__(self) -> Iterator[Row]:
        try:
            for id_, *values in self._connection.execute(self._question):
                if id_ == self._until:
                    break
                self.last = id_
                yield _row(*values)
        except sqlite3.Error:
            return
        self.complete = True


def _opens(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("SELECT id FROM spool LIMIT 1").fetchone()
    except sqlite3.Error:
        return False
    return True


def _mend_first_page(path: Path) -> None:
    """Replace the first page, which says what is where: it is the same in every spool."""
    if path.stat().st_size <= _PAGE:
        return
    _beside(path, "-wal").unlink(missing_ok=True)
    model = path.with_name("model.sqlite3")
    with closing(sqlite3.connect(model)) as connection:
        create(connection)
    with path.open("r+b") as file:
        page = bytearray(model.read_bytes()[:_PAGE])
        page[18:20] = b"\x01\x01"  # without a journal beside it
        page[28:32] = (path.stat().st_size // _PAGE).to_bytes(4, "big")
        page[92:96] = page[24:28]  # the size is valid
        file.write(page)


def create(connection: sqlite3.Connection) -> None:
    """Make the table of a spool, unless it is there."""
    connection.execute(
        "CREATE TABLE IF NOT EXISTS spool (id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, "
        "message_id TEXT NOT NULL, text TEXT NOT NULL, refused TEXT)"
    )
    if not connection.execute("SELECT 1 FROM sqlite_sequence WHERE name = 'spool'").fetchone():
        # Numbers of one file are never those of a later one: who read the one may remove from the other.
        connection.execute(
            "INSERT INTO sqlite_sequence SELECT 'spool', ? "
            "WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'spool')",
            (secrets.randbelow(2**40) << 20,),
        )


def _row(kind: Any, message_id: Any, text: Any, refused: Any) -> Row:
    """Return a row as it is to be kept: refused when it cannot be an entry."""
    if refused is None and not _is_entry(kind, message_id, text):
        refused = DAMAGED
    return str(kind), str(message_id), str(text), None if refused is None else str(refused)


def _is_entry(kind: Any, message_id: Any, text: Any) -> bool:
    if kind not in get_args(RowKind) or not isinstance(message_id, str) or not isinstance(text, str):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _between(connection: Any, low: int | None, high: int | None) -> Sequence[int]:
    """Return the ids of rows that may be there between those that were read from both ends."""
    if low is None:
        return ()
    if high is None:
        try:
            [(high,)] = connection.execute("SELECT seq + 1 FROM sqlite_sequence WHERE name = 'spool'")
        except (sqlite3.Error, ValueError):
            return ()
    return range(low + 1, min(int(high or 0), low + _MAX_IDS))


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
