"""A folder that the spool cannot use: senders and workers are told which setting to change, and why."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support import Broker, lone_database

from waooaw_celery import AgentApp, Message, MessageBus
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.ledger.database import upgrade as schema


def mount(folder: Path, options: str) -> None:
    """Mount a file system in memory on a folder; skip the test if this user may not."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this user may not mount a file system: {done.stderr.strip()}")


@pytest.fixture(params=["EROFS", "ENOSPC", "ENOTDIR"])
def unusable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder that cannot be written, and the operating system's code for the reason."""
    folder, code = tmp_path / "unusable", str(request.param)
    if code == "ENOTDIR":
        folder.touch()
        yield folder / "spool", code
        return
    folder.mkdir()
    mount(folder, "ro,mode=700" if code == "EROFS" else "size=8k,mode=700")
    try:
        if code == "ENOSPC":
            (folder / "full").write_bytes(b"x" * 8192)
        yield folder, code
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(params=["setting", "temporary folder"])
def make_app(
    request: pytest.FixtureRequest,
    unusable: tuple[Path, str],
    valkey_broker: Broker,
    postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[], AgentApp]]:
    """Return a function that makes an application whose spool would be in the folder."""
    with lone_database(postgres_url) as url:
        broker = Broker(valkey_broker.url, valkey_broker.redis_url, tmp_path, url)
        with closing(broker.app()) as app:
            schema.upgrade(app.database)
        folder: str | None = str(unusable[0])
        if request.param == "temporary folder":
            monkeypatch.setenv("TMPDIR", str(folder))
            monkeypatch.setattr(tempfile, "tempdir", None)  # what Python has found before
            monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(unusable[0])])
            folder = None
        apps: list[AgentApp] = []

        def make() -> AgentApp:
            apps.append(broker.app(waooaw_spool_folder=folder, waooaw_agents=["nobody"]))
            return apps[-1]

        yield make
        for app in apps:
            app.close()


def test_sender_is_told_the_setting_and_the_reason(
    make_app: Callable[[], AgentApp], unusable: tuple[Path, str]
) -> None:
    """Each call says the same, and the broker is not blamed."""
    app = make_app()
    calls: list[Callable[[], object]] = [
        lambda: MessageBus(app).send(Message(from_agent="tests", to_agent="nobody", payload={})),
        lambda: app.signature("nobody.command", args=({},)).delay(),
    ]
    for call in (*calls, *calls):
        with pytest.raises(ConfigurationError, match="waooaw_spool_folder") as raised:
            call()
        assert unusable[1] in str(raised.value)
        assert str(unusable[0]) in str(raised.value)
    app.circuit_breaker.check()


def test_check_at_start_says_it(make_app: Callable[[], AgentApp], unusable: tuple[Path, str]) -> None:
    """A worker calls this check before it starts, and so does every command."""
    with pytest.raises(ConfigurationError, match="waooaw_spool_folder") as raised:
        make_app().check()
    assert unusable[1] in str(raised.value)
