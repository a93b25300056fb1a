"""An empty ledger in SQLite for each test. It is migrated once in a process, and copied."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.database.upgrade import upgrade

#: A folder in memory, where a commit does not wait for a disk.
_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder with a random name is made in it


@contextmanager
def ledger_folder() -> Iterator[Path]:
    """Yield a new folder with an empty ledger, ``ledger.db``, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="waooaw-testing-", dir=_parent()) as name:
        folder = Path(name)
        (folder / "ledger.db").write_bytes(_migrated(os.getpid()))
        yield folder


@cache
def _migrated(_: int) -> bytes:
    folder = Path(tempfile.mkdtemp(prefix="waooaw-testing-", dir=_parent()))
    try:
        database = Database(database_url(f"sqlite:///{folder / 'ledger.db'}"))
        upgrade(database)
        database.close()
        return (folder / "ledger.db").read_bytes()
    finally:
        shutil.rmtree(folder)


def _parent() -> str | None:
    return str(_IN_MEMORY) if os.access(_IN_MEMORY, os.W_OK) else None
