"""Commands and workers whose URLs a server or a driver refuses end with one line, and show no password."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support import PROBE_FOLDER

COMMANDS = {
    "worker": ["celery", "-A", "probe", "worker", "-c", "1"],
    "queues": ["waooaw_celery", "queues"],
    "dead": ["waooaw_celery", "dead", "list"],
    "send": ["waooaw_celery", "send", "known", "{}"],
}


def run(command: str, **env: str) -> tuple[int, str]:
    """Run a command, and return its exit code and what it wrote to standard error."""
    ended = subprocess.run(
        [sys.executable, "-m", *COMMANDS[command]],
        env=os.environ | {"PROBE_NAME": "refused-probe", "WAOOAW_AGENTS": "known"} | env,
        cwd=PROBE_FOLDER,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stderr


@pytest.mark.rabbitmq
@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_password_of_rabbitmq_is_one_line(amqp_url: str, redis_url: str, command: str) -> None:
    """RabbitMQ refuses the login: the last line says so, and there is no traceback of py-amqp."""
    wrong = amqp_url.replace("guest:guest@", "guest:Left-Right@")
    assert wrong != amqp_url
    code, text = run(command, CELERY_BROKER_URL=wrong, WAOOAW_REDIS_URL=redis_url)
    assert code == (1 if command == "worker" else 3), text
    assert "Traceback" not in text
    assert "Left" not in text
    last = text.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert "refused" in last


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("variable", ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "WAOOAW_REDIS_URL"])
def test_a_password_that_is_not_encoded_is_one_line(redis_url: str, command: str, variable: str) -> None:
    """The last line says what to encode, and no line shows a part of the password."""
    env = {"CELERY_BROKER_URL": redis_url} | {variable: "redis://:Left/Ri@ght@localhost:6379/0"}
    code, text = run(command, **env)
    assert code == 1, text
    assert "Traceback" not in text
    assert not any(part in text for part in ("Left", "Ri@", "ght@"))
    assert "/ as %2F" in text.strip().splitlines()[-1]
