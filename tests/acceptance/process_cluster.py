"""pytest-celery without Docker: its containers are local processes.

pytest-celery accesses Docker only through the docker-py object that its containers wrap. ``Process`` is such an
object for a local process, so that pytest-celery's nodes, clusters and setups work unchanged.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from signal import SIGKILL, Signals
from subprocess import Popen
from typing import Any
from uuid import uuid4

import celery
from celery import Celery
from pytest_celery import CeleryTestContainer, CeleryTestSetup
from pytest_docker_tools.exceptions import ContainerFailed
from support import WAIT_SECONDS, until

from waooaw_celery import create_app
from waooaw_celery.errors import UnknownAgent
from waooaw_celery.testing.embedded import _valkey_binary, end, spawn

AGENTS = Path(__file__).parent


class Process:
    """A local process with the methods of docker-py's ``Container`` that pytest-celery uses."""

    def __init__(
        self, id_: str, name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.id = id_
        self.name = name
        # No networks and no ports, so that pytest-celery waits for none.
        self.attrs: dict[str, Any] = {"NetworkSettings": {"Networks": {}, "Ports": {}}}
        self._command = command
        self._log = log
        self._env = {**os.environ, **(env or {})}
        self._process: Popen[bytes] | None = None

    @property
    def status(self) -> str:
        """Return ``created``, ``running`` or ``exited``."""
        if self._process is None:
            return "created"
        return "running" if self._process.poll() is None else "exited"

    def reload(self) -> None:
        """Do nothing: ``status`` is always current."""

    def restart(self, timeout: float = WAIT_SECONDS) -> None:
        """End the process if it is running, and start it."""
        self.stop(timeout)
        self._log.unlink(missing_ok=True)
        self._process = spawn(self._command, log=self._log, env=self._env, cwd=AGENTS)

    def kill(self, signal: str | int | None = None) -> None:
        """Send a signal; send SIGKILL to the whole group, because a container ends with its first process."""
        number = Signals[signal] if isinstance(signal, str) else Signals(signal or SIGKILL)
        if self._process is None or self._process.poll() is not None:
            return
        if number != SIGKILL:
            self._process.send_signal(number)
            return
        os.killpg(self._process.pid, SIGKILL)
        self._process.wait(WAIT_SECONDS)

    def wait(self, timeout: float) -> int:
        """Wait for the end, and return the exit code."""
        assert self._process is not None
        return self._process.wait(timeout)

    def stop(self, timeout: float = WAIT_SECONDS) -> None:
        """End the process, and print its log, which pytest shows if the test fails."""
        if self._process is None:
            return
        end(self._process, timeout)
        self._process = None
        print(f"--- log of {self.name} ---\n{self.logs().decode()}")

    def logs(self) -> bytes:
        """Return the output since the last start: older lines would contain the ready prompt."""
        return self._log.read_bytes() if self._log.exists() else b""


class ProcessContainer(CeleryTestContainer):
    """A pytest-celery container that is a local process."""

    _container: Process

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the process while the block runs."""
        try:
            self.restart()
            yield
        finally:
            self.teardown()

    def wait(self, timeout: float = WAIT_SECONDS) -> int:
        """Wait for the end, and return the exit code."""
        return self._container.wait(timeout)

    def teardown(self) -> None:
        """Kill the process, if it is running."""
        self._container.kill()
        self._container.stop()

    def _wait_ready(self, timeout: float = WAIT_SECONDS) -> bool:
        # pytest-celery's method polls once a second, and waits two minutes even if the process has ended.
        until(self._has_started_or_ended, f"{self.name} is ready", timeout)
        if self.status == "exited":
            raise ContainerFailed(self, f"{self.name} ended before it was ready: {self.logs()[-500:]}")
        return True

    def _has_started_or_ended(self) -> bool:
        return self.ready_prompt in self.logs() or self.status == "exited"


class ValkeyContainer(ProcessContainer):
    """A Valkey server on a socket in its folder: broker, result backend and store."""

    ready_prompt = "Ready to accept connections"

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "valkey.sock"
        command = [str(_valkey_binary()), "--port", "0", "--unixsocket", str(self._socket), "--dir", str(folder)]
        command += ["--save", "", "--maxmemory-policy", "noeviction"]
        super().__init__(Process(uuid4().hex, "valkey", command, folder / "valkey.log"))

    @property
    def celeryconfig(self) -> dict[str, str]:
        """Return its URL, for the worker and for the tests."""
        url = f"redis+socket://{self._socket}"
        return {"url": url, "host_url": url}


class WorkerContainer(ProcessContainer):
    """A real ``celery worker`` of the agent in ``agents/<agent>.py``."""

    ready_prompt = " ready."

    def __init__(self, agent: str, folder: Path, env: Mapping[str, str]) -> None:
        self._agent = agent
        id_ = uuid4().hex[:12]
        # The node name is what CeleryTestWorker.hostname() returns; the tasks are for setup.ready(ping=True).
        command = [sys.executable, "-m", "celery", "-A", f"agents.{agent}", "worker", "-n", f"{agent}@{id_}"]
        command += ["-c", "1", f"--loglevel={self.log_level()}", "-I", "pytest_celery.vendors.worker.tasks"]
        super().__init__(Process(id_, agent, command, folder / f"{agent}.log", env))

    def worker_name(self) -> str:
        """Return the part of the node name before the @, which is the agent's name."""
        return self._agent

    def worker_queue(self) -> str:
        """Return the queue that the worker consumes."""
        return f"agent.{self._agent}"

    def version(self) -> str:
        """Return the version of Celery."""
        return celery.__version__

    def log_level(self) -> str:
        """Return the log level."""
        return "INFO"


class AgentSetup(CeleryTestSetup):
    """A pytest-celery setup whose application can send to agents."""

    @classmethod
    def create_setup_app(cls, celery_setup_config: dict[str, Any], celery_setup_app_name: str) -> Celery:
        """Return an application that sends as ``tests``."""
        return create_app(celery_setup_app_name, waooaw_sender="tests", **celery_setup_config)

    def ready(self, *args: bool, **kwargs: bool) -> bool:
        """Also wait until the agents are registered: before that, a send is refused."""
        for worker in self.worker_cluster or ():
            until(partial(self._is_alive, worker.worker_name), f"{worker.worker_name} is registered and alive")
        return super().ready(*args, **kwargs)

    def _is_alive(self, agent: str) -> bool:
        try:
            return bool(self.app.registry.get(agent).workers)
        except UnknownAgent:
            return False
