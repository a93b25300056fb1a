"""SQLite connections whose calls no fork interrupts.

SQLite guards its memory with a mutex of the process. A process that is forked while another thread holds it never
gets it, and waits for ever in its own first call of SQLite. A pool forks at any time: when it grows, and when it
replaces a process. So a fork waits until no thread is in a call, and calls wait until the fork is over.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from waooaw_celery.messages.log.loggers import get_logger

logger = get_logger(__name__)

#: Seconds that a fork waits for the calls of other threads. SQLite itself waits at most 5 s for a locked file.
FORK_SECONDS = 10.0


class _ForkGate:
    """Keeps calls of SQLite and forks apart. ``with gate:`` surrounds a call."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._reset()

    def _reset(self) -> None:
        self._condition = threading.Condition()
        self._calls, self._forks = self._own_calls, 0

    @property
    def _own_calls(self) -> int:
        """1 if this thread is in a call, such as a function of SQL that forks; otherwise 0."""
        return int(getattr(self._own, "depth", 0) > 0)

    def __enter__(self) -> None:
        depth = getattr(self._own, "depth", 0)
        self._own.depth = depth + 1
        if not depth:
            with self._condition:
                self._condition.wait_for(lambda: not self._forks, FORK_SECONDS)
                self._calls += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own.depth -= 1
        if not self._own.depth:
            with self._condition:
                self._calls -= 1
                if self._forks and not self._calls:
                    self._condition.notify_all()

    def before_fork(self) -> None:
        """Let no call begin, and wait for those that run."""
        own = self._own_calls
        with self._condition:
            self._forks += 1
            if not self._condition.wait_for(lambda: self._calls <= own, FORK_SECONDS):
                logger.warning(
                    "a process is forked although a call of SQLite has not ended within %g s: it may hang",
                    FORK_SECONDS,
                    extra={"action": "forked_within_sqlite"},
                )

    def after_fork(self) -> None:
        """Let calls begin again, in the parent."""
        with self._condition:
            self._forks -= 1
            self._condition.notify_all()

    def after_fork_in_child(self) -> None:
        """Let calls begin, in the child, whose only thread is the one that forked."""
        self._reset()


_gate = _ForkGate()
os.register_at_fork(
    before=_gate.before_fork,
    after_in_parent=_gate.after_fork,
    after_in_child=_gate.after_fork_in_child,
)


class SafeCursor(sqlite3.Cursor):
    """A cursor whose calls no fork interrupts."""

    def execute(self, *args: Any) -> SafeCursor:
        """Run a statement."""
        with _gate:
            super().execute(*args)
        return self

    def executemany(self, *args: Any) -> SafeCursor:
        """Run a statement many times."""
        with _gate:
            super().executemany(*args)
        return self

    def executescript(self, script: str) -> SafeCursor:
        """Run several statements."""
        with _gate:
            super().executescript(script)
        return self

    def fetchone(self) -> Any:
        """Return the next row."""
        with _gate:
            return super().fetchone()

    def fetchmany(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Return the next rows."""
        with _gate:
            return super().fetchmany(*args, **kwargs)

    def fetchall(self) -> list[Any]:
        """Return all rows that are left."""
        with _gate:
            return super().fetchall()

    def __next__(self) -> Any:
        with _gate:
            return super().__next__()

    def close(self) -> None:
        """End the statement."""
        with _gate:
            super().close()


class SafeConnection(sqlite3.Connection):
    """A connection whose calls no fork interrupts: ``sqlite3.connect(path, factory=SafeConnection)``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with _gate:
            super().__init__(*args, **kwargs)

    def cursor(self, factory: Any = SafeCursor) -> Any:
        """Return a cursor."""
        return super().cursor(factory)

    def execute(self, *args: Any) -> sqlite3.Cursor:
        """Run a statement, and return its cursor."""
        return self._run("execute", *args)

    def executemany(self, sql: str, rows: Iterable[Any]) -> sqlite3.Cursor:
        """Run a statement many times, and return its cursor."""
        return self._run("executemany", sql, rows)

    def executescript(self, script: str) -> sqlite3.Cursor:
        """Run several statements, and return their cursor."""
        return self._run("executescript", script)

    def _run(self, method: str, *args: Any) -> sqlite3.Cursor:
        cursor: sqlite3.Cursor = self.cursor()
        try:
            getattr(cursor, method)(*args)
        except BaseException:
            cursor.close()  # the traceback of the error keeps it, and an open statement keeps the file open
            raise
        return cursor

    def commit(self) -> None:
        """Commit the transaction."""
        with _gate:
            super().commit()

    def rollback(self) -> None:
        """Roll the transaction back."""
        with _gate:
            super().rollback()

    def create_function(self, *args: Any, **kwargs: Any) -> None:
        """Add a function of SQL."""
        with _gate:
            super().create_function(*args, **kwargs)

    def close(self) -> None:
        """Close the connection."""
        with _gate:
            super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        with _gate:
            return super().__exit__(kind, error, trace)
