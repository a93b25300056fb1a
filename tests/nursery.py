"""Workers and commands without the second that each takes to import Celery: forked from a process that has.

Hundreds of tests start some, and imports were most of what the whole suite computed. A process from here runs
``python -m celery …`` or ``python -m waooaw_celery …`` from the first line on, with an environment, a folder, a
process group and files of its own, and is a child of the tests' process, which may wait for it, freeze it and kill
it. What a user types first (README, demo, `waooaw up`, compose) is started from nothing by its tests.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from waooaw_celery import embedded

#: What they import, whatever they are to do.
MODULES = (
    "celery.bin.celery",
    "celery.apps.worker",
    "celery.apps.beat",
    "celery.backends.redis",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.loaders.app",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.strategy",
    "kombu.asynchronous",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "psycopg2.extras",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "sqlalchemy.dialects.sqlite",
    "waooaw_celery.cli",
    "waooaw_celery.broker.redis.transport",
)
#: Seconds until the nursery must have answered.
PATIENCE = 60.0

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # Linux, prctl(2)


def spawn(
    command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a process as ``embedded.spawn`` does; most workers of Celery are forked, on Linux."""
    env = dict(os.environ if env is None else env)
    if not _forkable(command, env):
        return embedded.spawn(command, log=log, env=env, cwd=cwd)
    return _nursery().child(command, env, cwd or Path.cwd(), (os.devnull, str(log), str(log)))


def waooaw(*arguments: str, env: Mapping[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command of ``waooaw`` to its end.

    Args:
        arguments: its words.
        env: what its environment has beside that of the tests.
        stdin: what it reads.
    """
    command, whole = [sys.executable, "-m", "waooaw_celery", *arguments], dict(os.environ) | dict(env)
    if not _forkable(command, whole):
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=PATIENCE, check=False, env=whole
        )
    with TemporaryDirectory() as folder:
        files = tuple(Path(folder, name) for name in ("in", "out", "err"))
        files[0].write_text(stdin)
        process = _nursery().child(command, whole, Path.cwd(), tuple(map(str, files)))
        try:
            code = process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait(PATIENCE)
        return subprocess.CompletedProcess(command, code, files[1].read_text(), files[2].read_text())


def _forkable(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether this may be forked: a known module that need not be the first to import what it patches."""
    folders = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    at_first = any(Path(each, "sitecustomize.py").exists() for each in folders)
    python, *words = _plain(command)
    known = python == sys.executable and words[:1] == ["-m"] and words[1] in ("celery", "waooaw_celery")
    return sys.platform == "linux" and known and not at_first and not {"gevent", "eventlet"} & set(words)


def _plain(command: Sequence[str]) -> list[str]:
    """Return a command without what a fork does anyhow: it shows no warnings."""
    words = list(command)
    return words[:1] + words[3:] if words[1:3] == ["-W", "ignore"] else words


class Forked(subprocess.Popen[bytes]):
    """A child of this process that was not started by it."""

    def __init__(self, pid: int, command: Sequence[str]) -> None:
        self.args, self.pid = list(command), pid
        self.stdin = self.stdout = self.stderr = None
        self.returncode = None
        self._asking = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        with self._asking:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return the exit code."""
        ends_at = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if ends_at is not None and time.monotonic() > ends_at:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, sig: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)


class Nursery:
    """The process from which workers are forked; it ends with this one."""

    def __init__(self) -> None:
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        self._lock = threading.Lock()
        command = [sys.executable, "-W", "ignore", __file__]
        # Its own session: a Ctrl-C is for the tests, which end what they started.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        atexit.register(self.close)

    def child(self, command: Sequence[str], env: Mapping[str, str], cwd: Path, files: tuple[str, ...]) -> Forked:
        """Have a process forked: a child of this one, since its own parent ends at once.

        Args:
            command: ``python -m`` a module, and its arguments.
            env: its environment.
            cwd: its folder.
            files: those of its standard streams.
        """
        module, *arguments = _plain(command)[2:]
        order = {"module": module, "argv": arguments, "env": dict(env), "cwd": str(cwd), "files": files}
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
            try:
                self._process.stdin.write(json.dumps(order) + "\n")
                self._process.stdin.flush()
                there, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
                answer = self._process.stdout.readline() if there else ""
            finally:
                self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)
        assert answer, f"the nursery forked nothing within {PATIENCE:g} s: exit code {self._process.poll()}"
        return Forked(int(answer), command)

    def close(self) -> None:
        """End it."""
        with self._process:
            self._process.kill()


@cache
def _nursery() -> Nursery:
    """Return the nursery of this process."""
    return Nursery()


# --- in the nursery


def serve() -> dict[str, Any] | None:
    """Fork a process for each order; return the order in that process, and None at the end."""
    for module in MODULES:
        import_module(module)
    gc.freeze()  # nothing of it is ever garbage
    tests = os.getppid()
    for line in sys.stdin:
        middle = os.fork()
        if not middle:
            child = os.fork()
            if child:
                os._exit(0)  # so that the child goes to the process of the tests
            _wait_for_parent(tests)
            os.write(1, f"{os.getpid()}\n".encode())
            order: dict[str, Any] = json.loads(line)
            return order
        os.waitpid(middle, 0)
    return None


def _wait_for_parent(pid: int) -> None:
    ends_at = time.monotonic() + PATIENCE
    while os.getppid() != pid:
        if time.monotonic() > ends_at:
            os._exit(1)
        time.sleep(0.001)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def become(order: Mapping[str, Any]) -> None:
    """Be the process of an order."""
    os.setsid()
    for target, path in enumerate(order["files"]):
        file = os.open(path, os.O_RDONLY if target == 0 else os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update(order["env"])
    time.tzset()
    os.chdir(order["cwd"])
    folders = filter(None, order["env"].get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = [order["cwd"], *folders]
    sys.argv = [order["module"], *order["argv"]]
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _order = serve()
    if _order is not None:
        become(_order)
