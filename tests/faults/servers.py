"""Brokers that a test can kill, restart with their data, freeze and fill up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from redis import Redis, RedisError

from waooaw_celery.testing.embedded import DEADLINE_SECONDS, _short_folder, _valkey_binary, end, free_port, spawn

#: The programs of Debian's package. Those in /usr/sbin would switch to another user if run as root.
RABBITMQ = Path("/usr/lib/rabbitmq/bin")
#: Seconds that RabbitMQ may take to start on a busy computer.
START_SECONDS = 90.0


class Server(ABC):
    """A broker that only one test uses.

    Args:
        folder: folder for its data and its log.

    Attributes:
        url: its URL.
    """

    url: str

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def start(self) -> None:
        """Start it, with the data that it had when it was killed."""

    @abstractmethod
    def fill(self) -> None:
        """Make it refuse new messages because its memory is full."""

    @abstractmethod
    def relieve(self) -> None:
        """Make it accept messages again."""

    def kill(self) -> None:
        """Kill the process."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(DEADLINE_SECONDS)

    def freeze(self) -> None:
        """Stop the process (SIGSTOP). Its connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue the process (SIGCONT)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def running(self) -> bool:
        """Return whether the process is running."""
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """End the process in any state."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGCONT)
            end(self._process)

    def _end_of_log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-500:]


class Valkey(Server):
    """A Valkey server.

    Args:
        folder: folder for its data, its socket and its log.
        durable: whether it has an append-only file; otherwise a kill loses all data.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        super().__init__(folder)
        self._socket = folder / "valkey.sock"
        self._durable = durable
        self.url = f"redis+socket://{self._socket}"
        self.client: Any = Redis(unix_socket_path=str(self._socket), socket_timeout=5.0)

    def start(self) -> None:
        command = [str(_valkey_binary()), "--port", "0", "--unixsocket", str(self._socket)]
        command += ["--dir", str(self._folder), "--save", "", "--appendonly", "yes" if self._durable else "no"]
        command += ["--maxmemory-policy", "noeviction"]
        self._process = spawn(command, log=self._folder / "log")
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(RedisError):  # it does not listen yet, or is loading its data
                if self.client.ping():
                    return
            time.sleep(0.02)
        raise AssertionError(f"the server did not start: {self._end_of_log()}")

    def fill(self) -> None:
        self.client.config_set("maxmemory", 1)

    def relieve(self) -> None:
        self.client.config_set("maxmemory", 0)

    def close(self) -> None:
        self.client.close()
        super().close()


class RabbitMQ(Server):
    """A RabbitMQ node of Debian's package, with its own port mapper.

    Args:
        folder: folder for its data, its cookie and its log.

    Attributes:
        is_installed: whether the package is installed.
    """

    is_installed = (RABBITMQ / "rabbitmq-server").exists()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._port, mapper, distribution = free_port(), free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}//"
        data = folder / "data"
        data.mkdir()
        (folder / "plugins").write_text("[].")
        self._env = {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            "HOME": str(folder),  # for the cookie
            "RABBITMQ_NODENAME": f"faults{self._port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(data),
            "RABBITMQ_MNESIA_DIR": str(data / "mnesia"),
            "RABBITMQ_LOG_BASE": str(data),
            "RABBITMQ_LOGS": str(data / "node.log"),
            "RABBITMQ_PID_FILE": str(data / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1 -kernel inet_dist_use_interface {127,0,0,1}",
            "RUNNING_UNDER_SYSTEMD": "1",  # its script then becomes the server, instead of supervising it
            "ERL_EPMD_PORT": str(mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        command = ["epmd", "-port", str(mapper), "-address", "127.0.0.1"]
        self._mapper = spawn(command, log=folder / "log", env=self._env)

    def start(self) -> None:
        self._process = spawn([str(RABBITMQ / "rabbitmq-server")], log=self._folder / "log", env=self._env)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self._port), 1).close()
                return
            time.sleep(0.1)
        raise AssertionError(f"RabbitMQ did not start: {self._end_of_log()}")

    def fill(self) -> None:
        self._control("set_vm_memory_high_watermark", "0.00001")

    def relieve(self) -> None:
        self._control("set_vm_memory_high_watermark", "0.4")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()  # an orderly shutdown takes seconds, and its data is not needed
        super().close()
        end(self._mapper)

    def _control(self, *command: str) -> None:
        subprocess.run(
            [str(RABBITMQ / "rabbitmqctl"), *command],
            env=self._env,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=START_SECONDS,
        )


@contextmanager
def lone_valkey(*, durable: bool = True) -> Iterator[Valkey]:
    """Run a Valkey server while the block runs."""
    with tempfile.TemporaryDirectory(prefix="waooaw-faults-", dir=_short_folder()) as folder:
        server = Valkey(Path(folder), durable=durable)
        try:
            server.start()
            yield server
        finally:
            server.close()


@contextmanager
def lone_rabbitmq() -> Iterator[RabbitMQ]:
    """Run a RabbitMQ node while the block runs."""
    with tempfile.TemporaryDirectory(prefix="waooaw-faults-", ignore_cleanup_errors=True) as folder:
        server = RabbitMQ(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.close()
