"""`waooaw serve` as a process: it starts, serves, ends in order, refuses what is unsafe, and may be killed."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest
import trustme
from edge_world import EdgeWorld, edge_world
from process_pool import spawn, waooaw
from support import until

from waooaw_celery.edges.access.principals_file import hash_key, read_principals
from waooaw_celery.testing.embedded import end, valkey


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeWorld]:
    folder = tmp_path_factory.mktemp("serve")
    with valkey() as url, edge_world(url, f"sqlite:///{folder / 'ledger.db'}", folder) as made:
        yield made


@contextmanager
def serving(world: EdgeWorld, folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """Run `waooaw serve` on a free port; yields the process, the address and the log."""
    log = folder / f"serve-{os.urandom(4).hex()}.log"
    log.touch()
    command = [sys.executable, "-m", "waooaw_celery", "serve", "--port", "0", *options]
    process = spawn(command, log=log, env=os.environ | world.env)
    try:
        until(lambda: "The edge speaks" in log.read_text() or process.poll() is not None, "the edge")
        found = re.search(r"The edge speaks [^:]+: (http\S+)", log.read_text())
        assert found is not None, log.read_text()
        yield process, found[1].rstrip("/"), log
    finally:
        end(process)


@pytest.mark.slow
def test_it_ends_in_order(world: EdgeWorld, tmp_path: Path) -> None:
    """SIGTERM ends it with 0: a stream ends, a client that waits gets a link, and both tasks go on."""
    with serving(world, tmp_path, "--http") as (process, url, log), ExitStack() as stack:
        path = f"{url}/v1/agents/{world.agent}/methods/slow"
        answers: list[httpx2.Response] = []
        waiting = threading.Thread(
            target=lambda: answers.append(httpx2.post(path, json={"seconds": 3.0}, timeout=30)), daemon=True
        )
        waiting.start()
        until(lambda: "slow begins" in world.happened(), "the handler")
        body = {"topic": "x", "words": 20, "pause": 0.1}
        stream = stack.enter_context(
            httpx2.stream(
                "POST", path.replace("slow", "write"), json=body, headers={"Accept": "text/event-stream"}
            )
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        waiting.join(15)
        list(stream.iter_lines())
    [answer] = answers
    assert answer.status_code == 202
    until(lambda: "slow ends" in world.happened(), "the end of the handler")
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_killed_edge_loses_no_task(world: EdgeWorld, tmp_path: Path) -> None:
    """Another edge finds the task, with the key of its client too, and it ends once."""
    before = world.happened().count("slow ends")
    headers = {"Idempotency-Key": "order 7", "Prefer": "respond-async"}
    with serving(world, tmp_path, "--http") as (process, url, _):
        path = f"/v1/agents/{world.agent}/methods/slow"
        task = httpx2.post(url + path, json={"seconds": 2.0}, headers=headers).json()
        until(lambda: httpx2.get(f"{url}/v1/tasks/{task['task_id']}").json()["state"] == "working", "the handler")
        process.kill()
        process.wait(10)
    with serving(world, tmp_path, "--http") as (_, url, _):
        again = httpx2.post(url + path, json={"seconds": 2.0}, headers={"Idempotency-Key": "order 7"}, timeout=30)
        assert again.json()["task_id"] == task["task_id"]
        assert again.json()["result"] == "done"
    assert world.happened().count("slow ends") == before + 1


@pytest.mark.slow
def test_an_agent_that_is_not_known_is_told(world: EdgeWorld, tmp_path: Path) -> None:
    """The edge starts, since its worker may start later, but a wrong name can be seen."""
    with serving(world, tmp_path, "--http", "--agent", "nobody", "--agent", world.agent) as (_, _, log):
        told = [line for line in log.read_text().splitlines() if "cannot serve" in line]
    assert len(told) == 1
    assert told[0].startswith("The edge cannot serve nobody yet")


@pytest.mark.slow
def test_it_is_served_with_a_certificate_and_keys(world: EdgeWorld, tmp_path: Path) -> None:
    """A key that --add-key prints gets in once its entry is in the file, nobody else."""
    added = waooaw("serve", "--add-key", "portal", env={})
    assert added.returncode == 0, added.stderr
    key = re.search(r"shown only now: (waooaw_\S+)", added.stderr)
    assert key is not None
    assert key[1] not in added.stdout
    principals = tmp_path / "principals.toml"
    principals.write_text(added.stdout.replace("agent.method", f"{world.agent}.echo"))
    assert read_principals(principals).by_key.keys() == {hash_key(key[1])}
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate.pem"))
    files = ("--tls-certificate", str(tmp_path / "certificate.pem"), "--tls-key", str(tmp_path / "key.pem"))
    with serving(world, tmp_path, "--http", "--principals", str(principals), *files) as (_, url, log):
        context = ssl.create_default_context()
        authority.configure_trust(context)
        url = url.replace("127.0.0.1", "localhost")
        assert url.startswith("https://")
        with httpx2.Client(base_url=url, verify=context, timeout=30) as client:
            path = f"/v1/agents/{world.agent}/methods/echo"
            assert client.post(path, json={"text": "x"}).status_code == 401
            right = client.post(path, json={"text": "x"}, headers={"X-API-Key": key[1]})
            assert right.json()["result"] == "x"
    assert key[1] not in log.read_text()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "choose what to speak"),
        (("--http", "--stdio"), "choose what to speak"),
        (("--http", "--host", "0.0.0.0"), "open to everybody"),  # noqa: S104 - refused
        (("--http", "--public-url", "https://agents.example"), "open to everybody"),
        (("--http", "--tls-key", __file__), "give both --tls-certificate and --tls-key"),
        (("--http", "--principals", "/nowhere/principals"), "cannot be read"),
        (("--http", "--oidc-issuer", "https://login.example"), "need --principals"),
        (("--http", "--trusted-proxy", "10.0.0.1"), "need --principals"),
        (("--http", "--allow-network", "10.0.0.1/8"), "is no address or network"),
        (("--add-key", "My portal"), "my-portal"),
    ],
)
def test_what_is_unsafe_or_wrong_is_refused(world: EdgeWorld, options: tuple[str, ...], expected: str) -> None:
    """With a sentence that says what to do."""
    done = waooaw("serve", "--port", "0", *options, env=world.env)
    assert done.returncode in (1, 2), done.stdout
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_an_edge_without_a_ledger_is_refused(world: EdgeWorld) -> None:
    """It answers from the ledger."""
    env = {name: value for name, value in world.env.items() if name != "WAOOAW_DATABASE_URL"}
    done = waooaw("serve", "--http", "--port", "0", env=env)
    assert done.returncode == 1
    assert "an edge needs the ledger" in done.stderr
