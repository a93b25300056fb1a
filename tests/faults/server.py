"""A Valkey that may be killed, started again with its data, and frozen."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from redis import Redis, RedisError

from waooaw_celery.embedded import PATIENCE, _short_folder, _valkey_binary, end, spawn


class Server:
    """A server of one's own, which writes down every command before it answers.

    Args:
        folder: for its data, its socket and its log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "valkey.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis+socket://{self._socket}"
        self.client: Any = Redis(unix_socket_path=str(self._socket), socket_timeout=5.0)

    def start(self) -> None:
        """Start it, with what it had when it was killed."""
        command = [
            str(_valkey_binary()),
            "--port",
            "0",
            "--unixsocket",
            str(self._socket),
            "--dir",
            str(self._folder),
        ]
        command += ["--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction"]
        self._process = spawn(command, log=self._folder / "log")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(RedisError):  # it does not listen yet, or still reads its data
                if self.client.ping():
                    return
            time.sleep(0.02)
        raise AssertionError(f"the server did not start: {(self._folder / 'log').read_text()[-500:]}")

    def kill(self) -> None:
        """Kill it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def freeze(self) -> None:
        """Stop it without closing a connection."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, in whatever state it is."""
        self.client.close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGCONT)
            end(self._process)


@contextmanager
def lone_server() -> Iterator[Server]:
    """Run a server while the block runs."""
    with tempfile.TemporaryDirectory(prefix="waooaw-faults-", dir=_short_folder()) as folder:
        server = Server(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.close()
