"""A process that is forked while threads use SQLite."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from waooaw_celery.ledger.database.sqlite.connection import SafeConnection

#: Without the connections of this package, a third of the children hang.
FORKS = 60


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[None]:
    """Two threads that open, write to, read and close SQLite files all the time."""
    over = threading.Event()
    errors: list[BaseException] = []

    def use(path: Path) -> None:
        try:
            while not over.is_set():
                with closing(sqlite3.connect(path, factory=SafeConnection)) as connection, connection:
                    connection.execute("CREATE TABLE IF NOT EXISTS t (a)")
                    connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(10)])
                    assert connection.execute("SELECT count(*) FROM t").fetchone()[0] >= 10
                    connection.execute("DELETE FROM t")
        except BaseException as error:  # noqa: BLE001 - the test shows it
            errors.append(error)

    threads = [threading.Thread(target=use, args=(tmp_path / f"{number}.sqlite",)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
    assert not errors


@pytest.mark.slow
def test_no_child_waits_for_a_lock_that_nobody_holds(busy: None) -> None:
    """Each child opens an SQLite file at once."""
    for _ in range(FORKS):
        pid = os.fork()
        if not pid:
            sqlite3.connect(":memory:", factory=SafeConnection).execute("SELECT 1").fetchall()
            os._exit(0)
        assert ended(pid), "a child hangs"


def ended(pid: int) -> bool:
    """Return whether a child has ended within some seconds; kill it if it has not."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False
