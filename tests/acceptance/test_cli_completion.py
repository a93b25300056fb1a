"""Completion in bash, zsh and fish: real processes that get the variables which the shell's script sets."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import click
import pytest
from support import until

from waooaw_celery import create_app
from waooaw_celery.cli import waooaw
from waooaw_celery.cli.base.agent_names import known_agents
from waooaw_celery.cli.base.completion import COMPLETE_VARIABLE, SHELLS

#: Seconds that a completion may take on a busy computer: the deadline of a second, and the import of Celery.
SECONDS = 20.0

shells = pytest.mark.parametrize("shell", SHELLS)


def complete(shell: str, *words: str, options: tuple[str, ...] = (), **env: str) -> tuple[list[str], str]:
    """Complete the last word as a shell's script does; return the completions, and standard error."""
    number = words[-1] if shell == "fish" else str(len(words))
    told = {
        COMPLETE_VARIABLE: f"{shell}_complete",
        "COMP_WORDS": " ".join(("waooaw", *words)),
        "COMP_CWORD": number,
        "_CLICK_COMPLETE_HELP": "1",
    }
    done = subprocess.run(
        [sys.executable, *options, "-m", "waooaw_celery"],
        env=os.environ | told | env,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    if shell == "bash":
        found = [line.partition(",")[2] for line in lines if line]
    elif shell == "zsh":
        found = lines[1::3]
    else:
        found = [each for each in lines if each not in ("", "plain")]
        found = [each.partition(",")[2].partition("\t")[0] if "," in each else each for each in found]
    return found, done.stderr


@shells
def test_commands_are_completed_without_celery(shell: str) -> None:
    """The names of the commands come from a list, so that nobody waits."""
    found, stderr = complete(shell, "re", options=("-X", "importtime"))
    assert found == ["receipt", "recover", "request", "resume"]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"celery", "redis", "sqlalchemy", "rich"}


@shells
def test_subcommands_options_and_choices_are_completed(shell: str) -> None:
    """As far as they begin so."""
    assert complete(shell, "dead", "")[0] == ["discard", "list", "retry", "show"]
    assert complete(shell, "--u")[0] == ["--utc"]
    assert complete(shell, "log", "--st")[0] == ["--status"]
    assert complete(shell, "log", "--priority", "u")[0] == ["urgent"]
    assert complete(shell, "completion", "z")[0] == ["zsh"]


@pytest.fixture
def agent(redis_url: str) -> Iterator[str]:
    """A known agent."""
    name = f"completed-{uuid4().hex[:8]}"
    with closing(create_app(broker_url=redis_url, result_backend=redis_url)) as app:
        app.registry.declare(name, ["command"], f"{name}@here", 60)
        yield name


@shells
def test_names_of_agents_are_completed(shell: str, agent: str, redis_url: str, tmp_path: Path) -> None:
    """As arguments, and after --to and --agent; from the broker of the environment, of -b, or of -A's module."""
    begin = agent[:-2]

    def check(*words: str, **env: str) -> None:
        """Check that the agent is completed: on a busy computer, a look may take more than its second."""
        until(lambda: complete(shell, *words, begin, **env) == ([agent], ""), f"waooaw {' '.join(words)}")

    for words in (("send",), ("log", "--to"), ("dead", "list", "--agent")):
        check(*words, CELERY_BROKER_URL=redis_url)
    check("-b", redis_url, "send", CELERY_BROKER_URL="")
    (tmp_path / "named.py").write_text(
        f"from waooaw_celery import create_app\napp = create_app(broker_url={redis_url!r})\n"
    )
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    check("-A", "named", "send", CELERY_BROKER_URL="", PYTHONPATH=path)


@shells
def test_no_server_means_no_names_and_no_noise(shell: str) -> None:
    """Nothing is printed when the broker is away, is silent, or is not set."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for url in ("redis://127.0.0.1:1/0", f"redis://127.0.0.1:{port}/0", "", "nonsense"):
            began = time.monotonic()
            assert complete(shell, "send", "a", CELERY_BROKER_URL=url) == ([], ""), url
            assert time.monotonic() - began < SECONDS / 2, url


def test_a_silent_server_is_given_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own timeout is three seconds, and a person waits for the names of agents."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        monkeypatch.setenv("CELERY_BROKER_URL", url)
        began = time.monotonic()
        assert known_agents(click.Context(waooaw)) == []
        assert 0.9 < time.monotonic() - began < 2.5


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_script_works_in_bash(tmp_path: Path) -> None:
    """Sourced in bash, the script completes `waooaw dead l`."""
    program = tmp_path / "waooaw"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m waooaw_celery "$@"\n')
    program.chmod(0o755)
    script = """
    source <(waooaw completion bash)
    complete -p waooaw
    COMP_WORDS=(waooaw dead l) COMP_CWORD=2
    _waooaw_completion waooaw
    echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", script],
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=3 * SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["complete -o nosort -F _waooaw_completion waooaw", "list"]


@shells
def test_the_script_names_the_program(shell: str) -> None:
    """It calls `waooaw` with the variable that these tests set."""
    done = subprocess.run(
        [sys.executable, "-m", "waooaw_celery", "completion", shell],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert f"{COMPLETE_VARIABLE}={shell}_complete" in done.stdout
    assert "waooaw" in done.stdout
