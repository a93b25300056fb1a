"""`waooaw console` as a process: it starts, serves, ends in order, and refuses what is unsafe."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from clocks import HOUR, skewed
from process_pool import spawn, waooaw
from support import Broker, lone_database, until

from waooaw_celery.agents import EventBus
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.testing.embedded import end


@contextmanager
def console(folder: Path, env: dict[str, str], *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `waooaw console` on a free port; yields the process and the address."""
    log = folder / "console.log"
    log.touch()
    command = [sys.executable, "-m", "waooaw_celery", "console", "--port", "0", *options]
    process = spawn(command, log=log, env=os.environ | {"WAOOAW_SPOOL_FOLDER": str(folder / "spool")} | env)
    try:
        until(lambda: "The console" in log.read_text() or process.poll() is not None, "the console")
        found = re.search(r"The console.*: (http\S+)", log.read_text())
        assert found is not None, log.read_text()
        yield process, found[1].rstrip("/")
    finally:
        end(process)


def get(url: str, headers: dict[str, str] | None = None, context: Any = None) -> tuple[int, str]:
    """Return the status and the body of a page."""
    request = urllib.request.Request(url, headers=headers or {})  # noqa: S310 - our own server
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_console_starts_read_only_and_ends_with_its_live_pages(redis_url: str, tmp_path: Path) -> None:
    """SIGTERM ends it with 0 within seconds, though a browser shows a live page, which never ends by itself."""
    with console(tmp_path, {"CELERY_BROKER_URL": redis_url}) as (process, url):
        assert "read-only" in (tmp_path / "console.log").read_text()
        status, page = get(url)
        assert status == 200
        assert "read-only" in page
        with urllib.request.urlopen(f"{url}/live/overview", timeout=20) as live:  # noqa: S310
            assert live.readline() == b"event: overview\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
    assert "Traceback" not in (tmp_path / "console.log").read_text()


@pytest.mark.parametrize("host", ["::1", "127.0.0.2"])
def test_its_address_is_said_on_every_loopback(redis_url: str, tmp_path: Path, host: str) -> None:
    """The address that it prints is the one at which it answers, also by IPv6."""
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        pytest.skip(f"this computer has no {host}")
    with console(tmp_path, {"CELERY_BROKER_URL": redis_url}, "--host", host) as (_, url):
        assert get(url)[0] == 200


def test_its_own_clock_may_be_wrong(redis_url: str, postgres_url: str, tmp_path: Path) -> None:
    """The last minutes are those of the ledger's clock, though the console's computer is three hours ahead."""
    with lone_database(postgres_url) as database:
        broker = Broker(redis_url, redis_url, tmp_path, database)
        with closing(broker.app()) as app:
            schema.upgrade(app.database)
            EventBus(app).publish("clocks.checked", {}, from_agent="shop")
        env = {"CELERY_BROKER_URL": redis_url, "WAOOAW_DATABASE_URL": database, **skewed(tmp_path, 3 * HOUR)}
        with console(tmp_path, env) as (_, url):
            assert "clocks.checked" in get(f"{url}/topics")[1]


def test_ctrl_c_ends_it(redis_url: str, tmp_path: Path) -> None:
    """Without a traceback, with exit code 0."""
    with console(tmp_path, {"CELERY_BROKER_URL": redis_url}) as (process, url):
        assert get(url)[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert "Traceback" not in (tmp_path / "console.log").read_text()


def test_it_is_served_with_a_certificate_and_passwords(redis_url: str, tmp_path: Path) -> None:
    """A user of the file gets in, nobody else; cookies are secure."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate.pem"))
    added = waooaw("console", "--add-user", "ada", "--role", "viewer", env={}, stdin="a long password\n" * 2)
    assert added.returncode == 0, added.stderr
    assert added.stdout.startswith("ada:viewer:scrypt$131072$8$1$")
    users = tmp_path / "users"
    users.write_text(added.stdout)
    users.chmod(0o600)
    files = ("--tls-certificate", str(tmp_path / "certificate.pem"), "--tls-key", str(tmp_path / "key.pem"))
    with console(tmp_path, {"CELERY_BROKER_URL": redis_url}, "--users", str(users), *files) as (_, url):
        context = ssl.create_default_context()
        authority.configure_trust(context)
        url = url.replace("127.0.0.1", "localhost")
        assert url.startswith("https://")
        assert get(url, context=context)[0] == 401
        right = {"Authorization": "Basic " + b64encode(b"ada:a long password").decode()}
        request = urllib.request.Request(url, headers=right)  # noqa: S310
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:  # noqa: S310
            assert "ada" in answer.read().decode()
            assert "; Secure" in answer.headers["Set-Cookie"]
            assert "max-age" in answer.headers["Strict-Transport-Security"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--host", "0.0.0.0"), "open to everybody"),  # noqa: S104 - refused
        (("--oidc-issuer", "https://login.example"), "needs --oidc-client-id"),
        (("--tls-key", __file__), "give both --tls-certificate and --tls-key"),
        (("--add-user", "ada"), "needs --role"),
        (("--allow-changes",), "changes need a ledger"),
        (("--users", "/nowhere/users"), "cannot be read"),
    ],
)
def test_what_is_unsafe_or_wrong_is_refused(redis_url: str, options: tuple[str, ...], expected: str) -> None:
    """With a sentence that says what to do."""
    done = waooaw("console", "--port", "0", *options, env={"CELERY_BROKER_URL": redis_url})
    assert done.returncode in (1, 2)
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_used_port_is_said(redis_url: str) -> None:
    """The error names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = waooaw("console", "--port", str(port), env={"CELERY_BROKER_URL": redis_url})
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 cannot be used" in done.stderr
