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
from waooaw_celery.embedded import end_all, spawn, valkey
from waooaw_celery.errors import WaooawError

#: Seconds that all processes may take to be ready.
START_SECONDS = 60.0

#: The agents of the demo: name, module, environment.
AGENTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("orchestrator", "workers.orchestrator", {}),
    ("analyst-1", "workers.analyst", {"ANALYST_NAME": "analyst-1"}),
    ("analyst-2", "workers.analyst", {"ANALYST_NAME": "analyst-2"}),
    ("archivist", "workers.archivist", {}),
    ("dashboard", "workers.dashboard", {}),
)
#: Where `workers` and `beat_schedule` are, in a checkout and installed.
ROOT = Path(waooaw_celery.__file__).parents[1]


class ProcessDied(WaooawError):
    """A process of the demo ended by itself."""


@dataclass
class Stack:
    """What runs.

    Attributes:
        url: URL of the broker and the result backend.
        app: an application to talk to the agents with.
        folder: private folder of the ledger, the logs and beat's timetable.
        processes: by name.
    """

    url: str
    app: AgentApp
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def database_url(self) -> str:
        """URL of the ledger, a SQLite file."""
        return f"sqlite:///{self.folder / 'ledger.sqlite'}"

    def start(self, name: str, arguments: list[str], env: Mapping[str, str] | None = None) -> None:
        """Start a process of Celery, which ends when this one does."""
        self.processes[name] = spawn(
            [sys.executable, "-m", "celery", *arguments],
            log=self.log(name),
            # Temporary files in our folder, so that those of a process that is killed go with it.
            env=os.environ
            | {"CELERY_BROKER_URL": self.url, "CELERY_RESULT_BACKEND": self.url}
            | {"WAOOAW_DATABASE_URL": self.database_url, "TMPDIR": str(self.folder)}
            # Nobody is limited, but `waooaw limits set` holds.
            | {"WAOOAW_RATE_LIMIT": "unlimited"}
            | dict(env or {}),
            cwd=ROOT,
        )

    def log(self, name: str) -> Path:
        """Return the file that holds what a process prints."""
        return self.folder / f"{name}.log"

    def check(self) -> None:
        """Check that everything still runs.

        Raises:
            ProcessDied: a process has ended; the sentence ends with what it printed last.
        """
        for name, process in self.processes.items():
            if process.poll() is not None:
                said = self.log(name).read_text(errors="replace").strip()[-1500:]
                raise ProcessDied(f"{name} ended with exit code {process.returncode}. It said last:\n{said}")

    def wait_until(self, ready: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait for something, watching the processes meanwhile.

        Raises:
            ProcessDied: one of them ended.
            WaooawError: it did not come to pass in time.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise WaooawError(f"{what} took longer than {seconds:g} s; the logs are in {self.folder}")
            time.sleep(0.1)


@contextmanager
def running_stack(port: int | None = None) -> Iterator[Stack]:
    """Run the demo's processes while the block runs, and leave none of them, and no file, behind.

    Args:
        port: port of the broker on 127.0.0.1; None: a socket in a private folder.
    """
    with ExitStack() as cleanup:
        cleanup.enter_context(_signals_unwind())
        cleanup.enter_context(_own_environment())
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="waooaw-")))
        url = cleanup.enter_context(valkey(port=port))
        app = create_app(broker_url=url, waooaw_sender=OPERATOR, waooaw_rate_limit="unlimited")
        cleanup.callback(app.close)
        stack = Stack(url=url, app=app, folder=folder)
        app.conf.waooaw_database_url = stack.database_url
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
    stack.start("system", _worker("beat_schedule", "system"))
    timetable = str(stack.folder / "celerybeat-schedule")
    stack.start("beat", ["-A", "beat_schedule", "beat", "--loglevel=INFO", "--schedule", timetable])


def _worker(module: str, name: str) -> list[str]:
    # Without mingle and gossip, which tell workers of each other and cost a second at the start.
    # With events, which Flower shows.
    quick = ["--without-mingle", "--without-gossip", "-E"]
    return ["-A", module, "worker", "-n", f"{name}@%h", "-c", "1", "--loglevel=INFO", *quick]


@contextmanager
def _own_environment() -> Iterator[None]:
    """Hide the variables that name a user's own servers: the demo must not talk to their agents."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith(("CELERY_", "WAOOAW_"))}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Let SIGTERM and a closed terminal unwind the program as Ctrl-C does, so that all is ended in order."""

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
