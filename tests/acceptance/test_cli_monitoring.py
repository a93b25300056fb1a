"""The commands of monitoring: `waooaw exporter` as a process, and the printed rules and dashboards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from fleet_metrics import parsed
from process_pool import spawn, waooaw
from support import until

from waooaw_celery.testing.embedded import end

PACKAGE = Path(__file__).parents[2] / "waooaw_celery"


@contextmanager
def exporter(folder: Path, env: dict[str, str], *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `waooaw exporter` on a free port; yields the process, and the URL without a path."""
    log = folder / "exporter.log"
    command = [sys.executable, "-m", "waooaw_celery", "exporter", "--port", "0", "--interval", "0.3", *options]
    log.touch()
    process = spawn(command, log=log, env=os.environ | env)
    try:
        until(lambda: "/metrics" in log.read_text() or process.poll() is not None, "the exporter")
        found = re.search(r"(http://\S+)/metrics", log.read_text())
        assert found is not None, log.read_text()
        yield process, found[1]
    finally:
        end(process)


def body(url: str) -> str:
    """Return what GET answers."""
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own server
        return str(answer.read().decode())


def test_the_exporter_serves_the_fleet(redis_url: str, tmp_path: Path) -> None:
    """Metrics in Prometheus's text format, and health; it ends with 0 at SIGTERM."""
    env = {"CELERY_BROKER_URL": redis_url, "WAOOAW_AGENTS": "idle-agent"}
    with exporter(tmp_path, env) as (process, url):
        until(lambda: 'source="store"} 1' in body(f"{url}/metrics"), "the first reading")
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        found = parsed(body(f"{url}/metrics"))
        assert found["waooaw_agent_workers"][("idle-agent",)] == 0
        assert not any(name.startswith(("python_", "process_")) for name in found)
        assert body(f"{url}/health/live") == "live\n"
        up = {("store",): 1.0, ("broker",): 1.0, ("dead_letters",): 1.0}
        until(lambda: parsed(body(f"{url}/metrics"))["waooaw_exporter_source_up"] == up, "all sources")
        assert "store: up" in body(f"{url}/health/ready")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            body(f"{url}/elsewhere")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_the_exporter_starts_without_its_servers(tmp_path: Path) -> None:
    """It must tell that they are down."""
    nowhere = "redis://127.0.0.1:9/0"  # the discard port
    env = {
        "CELERY_BROKER_URL": nowhere,
        "WAOOAW_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/nothing",
        "WAOOAW_SPOOL_FOLDER": str(tmp_path / "spool"),
    }
    with exporter(tmp_path, env) as (_, url):
        sources = ("store", "broker", "dead_letters", "messages", "ledger", "workflows")
        expected = {(source,): 0.0 for source in sources}
        until(lambda: parsed(body(f"{url}/metrics"))["waooaw_exporter_source_up"] == expected, "all sources down")


def test_a_port_that_is_in_use(redis_url: str, tmp_path: Path) -> None:
    """The error names the option, and not a setting of workers."""
    env = {"CELERY_BROKER_URL": redis_url}
    with exporter(tmp_path, env) as (_, url):
        done = waooaw("exporter", "--port", url.rpartition(":")[2], env=env)
    assert done.returncode == 1
    assert "cannot be used" in done.stderr
    assert "--port" in done.stderr
    assert "waooaw_health_port" not in done.stderr


def test_without_prometheus_client(redis_url: str, tmp_path: Path) -> None:
    """The command says what to install; the package itself and its other commands do not need it."""
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not installed')")
    env = os.environ | {"CELERY_BROKER_URL": redis_url, "PYTHONPATH": f"{tmp_path}:{PACKAGE.parent}"}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        # A new interpreter: a forked one has imported the library already.
        words = [sys.executable, "-m", "waooaw_celery", *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=env)

    done = run("exporter")
    assert done.returncode == 1
    assert "pip install 'waooaw-celery[prometheus]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert run("monitoring", "rules").returncode == 0
    assert run("queues").returncode == 0


def test_rules_are_printed_with_your_runbook() -> None:
    """The file of the package, unchanged, or with links to your copy of the runbook."""
    printed = waooaw("monitoring", "rules", env={})
    assert printed.stdout == (PACKAGE / "monitoring" / "alerts" / "waooaw.rules.yml").read_text()
    linked = yaml.safe_load(waooaw("monitoring", "rules", "--runbook", "https://wiki/x.md", env={}).stdout)
    links = [rule["annotations"]["runbook_url"] for group in linked["groups"] for rule in group["rules"]]
    assert all(link.startswith("https://wiki/x.md#waooaw") for link in links)


@pytest.mark.parametrize("name", ["fleet", "agent"])
def test_a_dashboard_is_printed_or_written(name: str, tmp_path: Path) -> None:
    """As JSON that Grafana imports."""
    printed = json.loads(waooaw("monitoring", "dashboard", name, env={}).stdout)
    assert printed["uid"] == f"waooaw-{name}"
    path = tmp_path / "dashboard.json"
    assert waooaw("monitoring", "dashboard", name, "--output", str(path), env={}).returncode == 0
    assert json.loads(path.read_text()) == printed
    refused = waooaw("monitoring", "dashboard", name, "--output", str(tmp_path / "no" / "file"), env={})
    assert refused.returncode == 1
    assert "cannot be written" in refused.stderr
