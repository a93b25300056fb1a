"""`waooaw flower` asks for a password, changes nothing, and shows no payload and no result."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
from support import Broker, settled, until

from waooaw_celery import Message, MessageBus, MessageStatus, RequestResponseHandler
from waooaw_celery.cli.monitoring.flower import check_loopback, checked_users
from waooaw_celery.errors import ConfigurationError, RemoteError
from waooaw_celery.testing.embedded import end, free_port, valkey

pytest.importorskip("flower")

CONFIDENTIAL = "born-1815-in-london"


class Page:
    """Flower at a port.

    Args:
        port: its port.
        user: user and password; None: without.
    """

    def __init__(self, port: int, user: str | None = None) -> None:
        self._root, self._user = f"http://127.0.0.1:{port}", user

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Return the status and the body of a path."""
        headers = {}
        if self._user is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(self._user.encode()).decode()
        data = b"{}" if method == "POST" else None
        try:
            request = Request(f"{self._root}{path}", data, headers, method=method)  # noqa: S310 - http
            with urlopen(request, timeout=20) as reply:  # noqa: S310 - http
                return reply.status, reply.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def answers(self) -> bool:
        """Return whether it listens."""
        try:
            return self.get("/healthcheck")[0] == 200
        except (URLError, OSError):
            return False


@contextmanager
def running_flower(url: str, folder: Path, *options: str, **variables: str) -> Iterator[tuple[int, Path]]:
    """Run `waooaw flower`; yields its port and its log."""
    port, log = free_port(), folder / "flower.log"
    env = os.environ | {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url, **variables}
    command = [sys.executable, "-m", "waooaw_celery", "flower", f"--port={port}", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=folder, start_new_session=True
        )
    try:
        until(lambda: Page(port).answers() or process.poll() is not None, "Flower")
        assert process.poll() is None, log.read_text()
        yield port, log
        process.terminate()
        assert process.wait(20) == 0, log.read_text()
    finally:
        end(process)


def password_in(log: Path) -> str:
    """Return the user and the password that the command printed."""
    found = re.search(r"user is (\w+), the password (\S+)\.", log.read_text())
    assert found is not None, log.read_text()
    return f"{found[1]}:{found[2]}"


@pytest.mark.slow
def test_flower_asks_for_a_password_and_shows_no_payload(tmp_path: Path) -> None:
    """All pages but two need the printed password. No result can be read, no task sent, no worker ended."""
    with valkey() as url:
        broker = Broker(url, url, tmp_path)
        app, name = broker.app(), broker.name()
        with (
            broker.running(name, app, "-E", "-l", "INFO", module="log_probe"),
            running_flower(url, tmp_path) as (
                port,
                log,
            ),
        ):
            page, guest = Page(port, password_in(log)), Page(port)
            until(lambda: name in page.get("/api/workers?refresh=1")[1], "the worker")
            requests = RequestResponseHandler(app)
            assert requests.request(name, "give", {"value": CONFIDENTIAL}, timeout=20) == CONFIDENTIAL
            with pytest.raises(RemoteError):
                requests.request(name, "fail", {"text": CONFIDENTIAL}, timeout=20)
            message = Message(from_agent="tests", to_agent=name, payload={"text": CONFIDENTIAL})
            MessageBus(app).send(message)
            assert settled(app, message.message_id) is MessageStatus.HANDLED

            def tasks() -> dict[str, Any]:
                found: dict[str, Any] = json.loads(page.get("/api/tasks")[1])
                return found

            def all_ended() -> bool:
                return {each["name"] for each in tasks().values() if each["state"] in ("SUCCESS", "FAILURE")} >= {
                    f"{name}.give",
                    f"{name}.fail",
                    f"{name}.command",
                }

            until(all_ended, "the tasks, named as agent and handler")
            pages = [
                "/",
                "/tasks",
                "/broker",
                f"/worker/{name}@{socket.gethostname()}",
                "/api/workers",
                "/api/tasks",
            ]
            pages += [f"/task/{id_}" for id_ in tasks()] + [f"/api/task/info/{id_}" for id_ in tasks()]
            pages += [f"/api/task/result/{id_}" for id_ in tasks()]
            for path in pages:
                status, text = page.get(path)
                assert status == (503 if "result" in path else 200), (path, status)
                assert CONFIDENTIAL not in text, path
                assert guest.get(path)[0] == 401, path
                assert Page(port, "operator:wrong").get(path)[0] == 401, path
            for path in (
                f"/api/task/async-apply/{name}.give",
                f"/api/worker/shutdown/{name}@{socket.gethostname()}",
            ):
                assert page.get(path, "POST")[0] == 403, path
                assert guest.get(path, "POST")[0] == 401, path
            for path in ("/metrics", "/healthcheck"):
                status, text = guest.get(path)
                assert status == 200
                assert CONFIDENTIAL not in text
            assert CONFIDENTIAL not in log.read_text()
        app.close()


@pytest.mark.slow
def test_waiting_messages_of_all_priorities_are_summed(tmp_path: Path) -> None:
    """Flower counts the lists of all four priorities of a queue, also with a prefix of keys."""
    with valkey() as url:
        broker = Broker(url, url, tmp_path)
        with running_flower(url, tmp_path, FLOWER_BASIC_AUTH="me:secret") as (port, log):
            assert "the password" not in log.read_text()
            app, name = broker.app(), broker.name()
            process = broker.start(name, app)
            page = Page(port, "me:secret")
            until(lambda: name in page.get("/api/workers?refresh=1")[1], "the worker")
            process.kill()
            process.wait(20)
            bus = MessageBus(app)
            for priority in ("URGENT", "HIGH", "NORMAL", "LOW"):
                bus.send(Message(from_agent="tests", to_agent=name, payload={}, priority=priority))
            found = json.loads(page.get("/api/queues/length")[1])["active_queues"]
            assert {each["name"]: each["messages"] for each in found}[f"agent.{name}"] == 4
            app.close()


@pytest.mark.slow
def test_the_log_of_flower_is_json(tmp_path: Path) -> None:
    """With the setting, each record is one line of JSON."""
    with (
        valkey() as url,
        running_flower(url, tmp_path, FLOWER_BASIC_AUTH="me:secret", WAOOAW_LOG_FORMAT="json") as (_, log),
    ):
        until(lambda: "Visit me at" in log.read_text(), "the first record")
        lines = [line for line in log.read_text().splitlines() if not line.startswith("Everybody")]
        assert any(json.loads(line)["logger"] == "flower.command" for line in lines)


def test_beyond_this_computer_it_needs_a_password(tmp_path: Path) -> None:
    """It does not start at other addresses without one; one that is not USER:PASSWORD is refused."""
    command = [sys.executable, "-m", "waooaw_celery", "flower", "--address=0.0.0.0"]
    env = os.environ | {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
    assert done.returncode == 1
    assert "set FLOWER_BASIC_AUTH=USER:PASSWORD" in done.stderr
    for address in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        check_loopback(address)
    for address in ("", "0.0.0.0", "::", "10.0.0.1", "flower.example"):  # noqa: S104
        with pytest.raises(ConfigurationError, match="FLOWER_BASIC_AUTH"):
            check_loopback(address)
    assert checked_users(("a:b, c:d", "e:f:g")) == ["a:b", "c:d", "e:f:g"]
    for wrong in ("admin", ":secret", "admin:"):
        with pytest.raises(ConfigurationError, match="USER:PASSWORD"):
            checked_users((wrong,))
