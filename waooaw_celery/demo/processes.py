"""The processes of the demo: an embedded Valkey, one Celery worker per agent, the system's worker, and beat."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import waooaw_celery
from waooaw_celery.app.app import AgentApp, create_app
from waooaw_celery.cli.group import OPERATOR
from waooaw_celery.errors import WaooawError
from waooaw_celery.testing.embedded import end, end_all, spawn, valkey

#: Seconds after which the agents must have started.
START_SECONDS = 60.0

#: The agents of the demo: name, module, environment.
AGENTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("orchestrator", "waooaw_celery.demo.agents.orchestrator", {}),
    ("analyst-1", "waooaw_celery.demo.agents.analyst", {"ANALYST_NAME": "analyst-1"}),
    ("analyst-2", "waooaw_celery.demo.agents.analyst", {"ANALYST_NAME": "analyst-2"}),
    ("archivist", "waooaw_celery.demo.agents.archivist", {}),
    ("dashboard", "waooaw_celery.demo.agents.dashboard", {}),
)
#: The application of beat, the system's worker and Flower.
SYSTEM = "waooaw_celery.demo.agents.system"
#: The folder that contains the package: the checkout, or site-packages. The processes run in it, so that they
#: import the same copy of the package as this process.
ROOT = Path(waooaw_celery.__file__).parents[1]


class ProcessDied(WaooawError):
    """A process of the demo ended unexpectedly."""


@dataclass
class Stack:
    """The running processes of the demo.

    Attributes:
        url: URL of the broker and the result backend.
        app: an application that sends to the agents.
        folder: private folder with the ledger, the logs and beat's schedule file.
        processes: the processes by name.
    """

    url: str
    app: AgentApp
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def database_url(self) -> str:
        """Return the URL of the ledger, a SQLite file."""
        return f"sqlite:///{self.folder / 'ledger.sqlite'}"

    def start(self, name: str, arguments: list[str], env: Mapping[str, str] | None = None) -> None:
        """Start a Celery process, which ends when this process does."""
        self.processes[name] = spawn(
            [sys.executable, "-m", "celery", *arguments],
            log=self.log(name),
            # TMPDIR is in our folder, so that the temporary files of a killed process are removed too.
            env=os.environ
            | {"CELERY_BROKER_URL": self.url, "CELERY_RESULT_BACKEND": self.url}
            | {"WAOOAW_DATABASE_URL": self.database_url, "TMPDIR": str(self.folder)}
            # No agent is limited, but `waooaw limits set` has an effect. A killed worker's workflows go on soon.
            | {"WAOOAW_RATE_LIMIT": "unlimited", "WAOOAW_WORKFLOW_LEASE_SECONDS": "2"}
            | {"WAOOAW_HEALTH_PORT": "0", "WAOOAW_HEALTH_HOST": "127.0.0.1"}  # each on a free port
            | dict(env or {}),
            cwd=ROOT,
        )

    def kill(self, name: str) -> None:
        """Kill an agent's worker with SIGKILL, and start another one."""
        process = self.processes[name]
        process.kill()
        end(process)  # its children too
        [(module, env)] = [(module, env) for agent, module, env in AGENTS if agent == name]
        self.start(name, _worker(module, name), env)

    def log(self, name: str) -> Path:
        """Return the file with the output of a process."""
        return self.folder / f"{name}.log"

    def check(self) -> None:
        """Check that all processes are running.

        Raises:
            ProcessDied: a process has ended. The error contains the end of its output.
        """
        for name, process in self.processes.items():
            if process.poll() is not None:
                output = self.log(name).read_text(errors="replace").strip()[-1500:]
                raise ProcessDied(f"{name} ended with exit code {process.returncode}. Its last output:\n{output}")

    def wait_until(self, ready: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait until a condition is true, and check the processes meanwhile.

        Args:
            ready: the condition; it is checked every 0.1 s.
            what: what is waited for, for the error, such as "starting".
            seconds: longest time to wait, in seconds.

        Raises:
            ProcessDied: a process ended.
            WaooawError: the condition was still false after that time.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise WaooawError(f"{what} took longer than {seconds:g} s; the logs are in {self.folder}")
            time.sleep(0.1)


@contextmanager
def running_stack(port: int | None = None) -> Iterator[Stack]:
    """Run the demo's processes while the block runs; then end them and remove their files.

    Args:
        port: port of the broker on 127.0.0.1; None: a socket in a private folder.

    Raises:
        ProcessDied: a process ended while the agents were starting.
        WaooawError: the agents did not start within a minute.
    """
    with ExitStack() as cleanup:
        cleanup.enter_context(_signals_unwind())
        cleanup.enter_context(_own_environment())
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="waooaw-")))
        url = cleanup.enter_context(valkey(port=port))
        app = create_app(broker_url=url, waooaw_sender=OPERATOR, waooaw_rate_limit="unlimited")
        cleanup.callback(app.close)
        stack = Stack(url=url, app=app, folder=folder)
        app.conf.update(waooaw_database_url=stack.database_url, waooaw_spool_folder=str(folder / "spool"))
        from waooaw_celery.ledger.database.upgrade import upgrade  # Alembic is slow to import

        upgrade(app.database)
        cleanup.callback(lambda: end_all(stack.processes.values()))
        _start_all(stack)
        names = {name for name, _, _ in AGENTS}
        stack.wait_until(
            lambda: names <= {record.name for record in app.registry.all()}, "starting", START_SECONDS
        )
        yield stack


def _start_all(stack: Stack) -> None:
    for name, module, env in AGENTS:
        stack.start(name, _worker(module, name), env)
    stack.start("system", _worker(SYSTEM, "system"))
    schedule_file = str(stack.folder / "celerybeat-schedule")
    stack.start("beat", ["-A", SYSTEM, "beat", "--loglevel=INFO", "--schedule", schedule_file])


def _worker(module: str, name: str) -> list[str]:
    # Mingle and gossip, by which workers find each other, take a second at the start. -E sends events for Flower.
    options = ["--without-mingle", "--without-gossip", "-E"]
    return ["-A", module, "worker", "-n", f"{name}@%h", "-c", "1", "--loglevel=INFO", *options]


@contextmanager
def _own_environment() -> Iterator[None]:
    """Hide the variables that name your own servers: the demo must not send to your agents."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith(("CELERY_", "WAOOAW_"))}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise an exception, as Ctrl-C does, so that the processes are ended in order."""

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
