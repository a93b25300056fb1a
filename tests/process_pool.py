"""Starts workers and commands for tests by forking a process that has already imported Celery.

Importing Celery takes a second, and hundreds of tests start a process. A forked process runs ``python -m celery
…`` or ``python -m waooaw_celery …`` with its own environment, working directory, process group and files. It is a
child of the test process, which can wait for it, freeze it and kill it. The tests of what a user types first
(README, demo, `waooaw up`, compose) start a new interpreter instead.
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

from waooaw_celery.testing import embedded

#: Modules that are imported before the fork.
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
#: Longest time that a fork or a command may take, in seconds.
WAIT_SECONDS = 60.0

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # Linux, prctl(2)


def spawn(
    command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a process as ``embedded.spawn`` does; on Linux, most Celery workers are forked."""
    env = dict(os.environ if env is None else env)
    if not _forkable(command, env):
        return embedded.spawn(command, log=log, env=env, cwd=cwd)
    return _process_pool().child(command, env, cwd or Path.cwd(), (os.devnull, str(log), str(log)))


def waooaw(*arguments: str, env: Mapping[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a ``waooaw`` command and wait for its end.

    Args:
        arguments: arguments of the command.
        env: variables to add to the environment of the tests.
        stdin: text for its standard input.
    """
    command, whole = [sys.executable, "-m", "waooaw_celery", *arguments], dict(os.environ) | dict(env)
    if not _forkable(command, whole):
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False, env=whole
        )
    with TemporaryDirectory() as folder:
        files = tuple(Path(folder, name) for name in ("in", "out", "err"))
        files[0].write_text(stdin)
        process = _process_pool().child(command, whole, Path.cwd(), tuple(map(str, files)))
        try:
            code = process.wait(WAIT_SECONDS)
        finally:
            process.kill()
            process.wait(WAIT_SECONDS)
        return subprocess.CompletedProcess(command, code, files[1].read_text(), files[2].read_text())


def _forkable(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether a command can be forked: a known module, without patches that must be applied before imports."""
    folders = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    at_first = any(Path(each, "sitecustomize.py").exists() for each in folders)
    python, *words = _plain(command)
    known = python == sys.executable and words[:1] == ["-m"] and words[1] in ("celery", "waooaw_celery")
    return sys.platform == "linux" and known and not at_first and not {"gevent", "eventlet"} & set(words)


def _plain(command: Sequence[str]) -> list[str]:
    """Return a command without ``-W ignore``, which holds for all forked processes."""
    words = list(command)
    return words[:1] + words[3:] if words[1:3] == ["-W", "ignore"] else words


class Forked(subprocess.Popen[bytes]):
    """A child of this process that another process forked."""

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
        """Wait until it ends, and return the exit code."""
        ends_at = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if ends_at is not None and time.monotonic() > ends_at:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal to it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)


class ProcessPool:
    """The process that forks others. It ends with this one."""

    def __init__(self) -> None:
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        self._lock = threading.Lock()
        command = [sys.executable, "-W", "ignore", __file__]
        # With its own session it gets no Ctrl-C; the tests end what they started.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        atexit.register(self.close)

    def child(self, command: Sequence[str], env: Mapping[str, str], cwd: Path, files: tuple[str, ...]) -> Forked:
        """Fork a process. It becomes a child of this process, because its own parent ends at once.

        Args:
            command: ``python -m``, a module, and its arguments.
            env: environment of the process.
            cwd: working directory of the process.
            files: paths of its standard input, output and error.
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
                ready, _, _ = select.select([self._process.stdout], [], [], WAIT_SECONDS)
                answer = self._process.stdout.readline() if ready else ""
            finally:
                self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)
        assert answer, f"no process was forked within {WAIT_SECONDS:g} s: exit code {self._process.poll()}"
        return Forked(int(answer), command)

    def close(self) -> None:
        """End the process."""
        with self._process:
            self._process.kill()


@cache
def _process_pool() -> ProcessPool:
    """Return the process pool of this process."""
    return ProcessPool()


# --- in the process that forks


def serve() -> dict[str, Any] | None:
    """Fork a process for each order. Return the order in the forked process, and None at the end."""
    for module in MODULES:
        import_module(module)
    gc.freeze()  # the imported modules are never garbage
    tests = os.getppid()
    for line in sys.stdin:
        middle = os.fork()
        if not middle:
            child = os.fork()
            if child:
                os._exit(0)  # so that the test process becomes the parent of the child
            _wait_for_parent(tests)
            os.write(1, f"{os.getpid()}\n".encode())
            order: dict[str, Any] = json.loads(line)
            return order
        os.waitpid(middle, 0)
    return None


def _wait_for_parent(pid: int) -> None:
    ends_at = time.monotonic() + WAIT_SECONDS
    while os.getppid() != pid:
        if time.monotonic() > ends_at:
            os._exit(1)
        time.sleep(0.001)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def become(order: Mapping[str, Any]) -> None:
    """Turn this process into the one that an order describes."""
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
