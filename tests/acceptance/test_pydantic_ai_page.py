"""The example of the page about pydantic-ai, run as the page says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from support import until

from waooaw_celery import create_app
from waooaw_celery.errors import UnknownAgent
from waooaw_celery.testing.embedded import running

TEXT = (Path(__file__).parents[2] / "docs" / "pydantic-ai.md").read_text()


@pytest.mark.slow
def test_the_example_runs_and_waits_for_a_person(redis_url: str, tmp_path: Path) -> None:
    """The refund is made when the signal approves it; the commands print it."""
    [(source, name)] = re.findall(r"```python\n(# (\w+)\.py\n.*?)```", TEXT, re.DOTALL)
    (tmp_path / f"{name}.py").write_text(source)
    [block] = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    worker, start, signal, result, show = [line.removeprefix("$ ") for line in block.strip().splitlines()]
    scripts = Path(sys.executable).parent
    env = os.environ | {
        "CELERY_BROKER_URL": redis_url,
        "WAOOAW_DATABASE_URL": f"sqlite:///{tmp_path}/ledger.sqlite",
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
    }

    def run(command: str) -> str:
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("waooaw db upgrade")
    log = tmp_path / "worker.log"
    with (
        closing(create_app(broker_url=redis_url, waooaw_database_url=env["WAOOAW_DATABASE_URL"])) as app,
        running(shlex.split(worker), log=log, env=env, cwd=tmp_path) as process,
    ):

        def lives() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return bool(app.registry.get(name).workers)
            except UnknownAgent:
                return False

        until(lives, "the worker")
        run(start)
        until(lambda: "signal approval" in run(show), "the wait for the approval")
        run(signal)
        assert "refunded order 0" in run(result)
        assert "support tool refund" in run(show)


def test_the_example_is_about_twenty_lines() -> None:
    """Beside the imports."""
    [source] = re.findall(r"```python\n# support\.py\n(.*?)```", TEXT, re.DOTALL)
    lines = [line for line in source.splitlines() if line.strip() and not re.match(r"(from|import) ", line)]
    assert len(lines) <= 20
