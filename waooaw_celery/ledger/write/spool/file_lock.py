"""A lock between the processes of one computer."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


class FileLock:
    """A shared or exclusive lock. It is released when the process that holds it ends.

    Args:
        path: the lock file. A second file beside it keeps newcomers out while a process waits for the exclusive
            lock.
        timeout: seconds to wait for the lock.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self._path, self._timeout = path, timeout

    @contextmanager
    def held(self, *, exclusive: bool) -> Iterator[None]:
        """Hold the lock while the block runs.

        Args:
            exclusive: whether to keep out all other processes. Otherwise those with a shared lock may run too.

        Raises:
            OSError: the lock files cannot be created.
            TimeoutError: another process held the lock for too long.
        """
        mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        with ExitStack() as gate, ExitStack() as lock:
            gate.enter_context(self._flock(self._path.with_suffix(".gate"), mode))
            lock.enter_context(self._flock(self._path, mode))
            if not exclusive:
                gate.close()
            yield

    @contextmanager
    def _flock(self, path: Path, mode: int) -> Iterator[None]:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            deadline = time.monotonic() + self._timeout
            while not try_lock(descriptor, mode):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process has held {path} for more than {self._timeout:g} s")
                time.sleep(0.005)
            try:
                yield
            finally:
                # A child that was forked meanwhile has the descriptor too, so closing ours would not unlock it.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)


def try_lock(descriptor: int, mode: int) -> bool:
    """Lock an open file without waiting, and return whether it is locked."""
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
