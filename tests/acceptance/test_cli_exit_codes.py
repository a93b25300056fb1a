"""The exit codes of the commands, which scripts rely on, of real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from process_pool import waooaw

from waooaw_celery.testing.embedded import free_port

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(redis_url: str, tmp_path: Path) -> dict[str, str]:
    """A broker, and a ledger with its tables."""
    found = {
        "CELERY_BROKER_URL": redis_url,
        "WAOOAW_DATABASE_URL": f"sqlite:///{tmp_path / 'ledger'}",
        "WAOOAW_SPOOL_FOLDER": str(tmp_path),
    }
    assert waooaw("db", "upgrade", env=found).returncode == 0
    return found


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Return a function that runs `waooaw` with its arguments."""

    def run(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return waooaw(*arguments, env=environment | env, stdin=stdin)

    return run


def check(done: subprocess.CompletedProcess[str], code: int, sentence: str) -> None:
    """Check the exit code, and that standard error is the sentence without a traceback."""
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stdout + done.stderr
    assert sentence in done.stderr


@pytest.mark.parametrize("arguments", [("agents",), ("db", "status"), ("dead", "list", "--json"), ("--help",)])
def test_0_it_is_done(run: Run, arguments: tuple[str, ...]) -> None:
    """The output is on standard output, and standard error is empty."""
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_1_the_answer_is_no(run: Run, tmp_path: Path) -> None:
    """A process that is not ready, tables that are missing, a dead letter that is refused, a question denied."""
    done = run("health", "--worker", "nobody@nowhere", "--json")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (1, "fail")
    check(run("db", "status", WAOOAW_DATABASE_URL=f"sqlite:///{tmp_path / 'empty'}"), 1, "schema is missing")
    refused = run("dead", "discard", "1-0", "--because", "it is gone", "--yes", "--json")
    assert (refused.returncode, len(json.loads(refused.stdout))) == (1, 1)
    check(run("erase", "--agent", "nobody", stdin="n\n"), 1, "Aborted!")
    check(run("limits", "resume", "nobody"), 1, "nobody is not paused")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("send", "greeter"), "Missing argument"),
        (("agents", "--colour"), "No such option"),
        (("log", "--since", "yesterday"), "is not a time"),
        (("sendd",), "No such command"),
        (("init", "my-agents"), "no name for a Python package"),
        (("completion", "tcsh"), "is not one of"),
        (("dead", "retry"), "choose dead letters"),
    ],
)
def test_2_wrong_usage(run: Run, arguments: tuple[str, ...], sentence: str) -> None:
    """Nothing was done."""
    check(run(*arguments), 2, sentence)


def test_3_a_server_is_away(run: Run) -> None:
    """The broker, the ledger or the store does not answer."""
    away = f"127.0.0.1:{free_port()}"
    check(run("agents", CELERY_BROKER_URL=f"redis://{away}/0"), 3, "Connection refused")
    check(run("log", WAOOAW_DATABASE_URL=f"postgresql://user@{away}/agents"), 3, "ledger")
    sent = run(
        "send",
        "greeter",
        "{}",
        WAOOAW_AGENTS="greeter",
        CELERY_BROKER_URL=f"amqp://{away}//",
        WAOOAW_REDIS_URL=f"redis://{away}/0",
    )
    assert sent.returncode == 3, sent.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("send", "nobody", "{}"), "agent 'nobody' is not known"),
        (("request", "nobody", "greet"), "agent 'nobody' is not known"),
        (("agent", "show", "nobody"), "nobody"),
        (("receipt", "no-such-id"), "no message 'no-such-id'"),
        (("conversation", "no-such-id"), "no-such-id"),
        (("dead", "show", "1-0"), "no dead letter"),
        (("events", "unsubscribe", "nobody.nothing"), "nobody.nothing"),
        (("workflow", "show", "no-such-id"), "no-such-id"),
        (("hold", "release", "agent", "nobody"), "there is no hold on agent nobody"),
    ],
)
def test_4_what_is_named_does_not_exist(run: Run, arguments: tuple[str, ...], sentence: str) -> None:
    """The error names it."""
    check(run(*arguments), 4, sentence)


def test_celery_waooaw_has_the_same_codes(environment: dict[str, str], tmp_path: Path) -> None:
    """The commands end so also as a part of `celery`."""
    (tmp_path / "named.py").write_text("from waooaw_celery import create_app\napp = create_app()\n")
    for arguments, code in ((("receipt", "no-such-id"), 4), (("send", "x"), 2), (("agents",), 0)):
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "named", "waooaw", *arguments],
            env=os.environ | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
