"""Other projects, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.suite.row import Sample, Subject

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-peers"
#: What is installed for each project, in an environment of its own: they require different versions of redis-py.
PACKAGES = {
    "huey": ["huey", "redis"],
    "Dramatiq": ["dramatiq[redis]"],
    "FastStream": ["faststream[redis,cli]"],
    "taskiq": ["taskiq", "taskiq-redis"],
    "arq": ["arq"],
    "DBOS": ["dbos"],
}
#: Seconds that the installation of a project may take.
INSTALL_SECONDS = 600


def program(project: str, name: str = "python") -> Path:
    """Return a program of the environment of a project."""
    return FOLDER / project / "bin" / name


def install() -> None:
    """Create the environments that are missing, and say what could not be installed."""
    for project, packages in PACKAGES.items():
        stamp, python = FOLDER / project / "installed", program(project)
        if stamp.exists():
            continue
        # Isolated: pip must not see the packages of the working directory.
        pip = [str(python), "-I", "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *packages]
        try:
            subprocess.run([sys.executable, "-m", "venv", str(FOLDER / project)], check=True)  # noqa: S603
            subprocess.run(pip, check=True, timeout=INSTALL_SECONDS)  # noqa: S603
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"{project} is not compared, because it could not be installed: {error}", file=sys.stderr)
        else:
            stamp.touch()


class Peers:
    """The subjects of other projects: a process that sends with each of them.

    Args:
        redis_url: the broker; Kombu's form or redis-py's.
        database_url: PostgreSQL.
        seconds: how long one sample takes.
        wanted: whether to compare with them at all.

    Attributes:
        url: the broker, in redis-py's form.
        able: what each project can do.
        missing: the other projects, and why they are not compared.
    """

    def __init__(self, redis_url: str, database_url: str, seconds: float, wanted: bool = True) -> None:
        self.url = redis_url.replace("redis+socket://", "unix://")
        self._seconds = seconds
        self.able: dict[str, list[str]] = {}
        self.missing: dict[str, str] = {}
        self._drivers: dict[str, subprocess.Popen[str]] = {}
        for project in PACKAGES:
            if not wanted or not (FOLDER / project / "installed").exists():
                self.missing[project] = "it is not installed" if wanted else "the run was to leave it out"
                continue
            self._drivers[project] = subprocess.Popen(  # noqa: S603 - our own program
                [str(program(project)), "-m", "benchmarks.suite.peer_driver", project, self.url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PEER": "", "PEER_DATABASE": database_url},
            )
            self.able[project] = self._read(project)["able"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for driver in self._drivers.values():
            driver.communicate()  # its standard input ends, and it too

    def rates(self, work: str, **arguments: int) -> dict[str, Subject]:
        """Return subjects that do some work, by the name of their project: those that are installed."""
        return {name: self._subject(name, work, arguments) for name, works in self.able.items() if work in works}

    def _subject(self, project: str, work: str, arguments: dict[str, int]) -> Subject:
        def sample() -> Sample:
            request = {"work": work, "arguments": arguments, "seconds": self._seconds}
            found = self._ask(project, request)
            if "error" in found:
                raise SystemExit(f"{project} failed: {found['error']}")
            return Sample(found["done"] / found["seconds"], found["cpu"] / found["done"] * 1e6)

        return sample

    def _ask(self, project: str, request: dict[str, Any]) -> dict[str, Any]:
        pipe = self._drivers[project].stdin
        assert pipe is not None  # noqa: S101 - it is a pipe
        pipe.write(json.dumps(request) + "\n")
        pipe.flush()
        return self._read(project)

    def _read(self, project: str) -> dict[str, Any]:
        pipe = self._drivers[project].stdout
        assert pipe is not None  # noqa: S101 - it is a pipe
        line = pipe.readline()
        if not line:
            raise SystemExit(f"the process that sends with {project} has ended (see above)")
        found: dict[str, Any] = json.loads(line)
        return found
