"""The alert rules: valid, each fires and ends, each has its section of the runbook and real metrics."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from fleet_metrics import WORKER_METRICS, program

from waooaw_celery.cli import waooaw
from waooaw_celery.maintenance.fleet import metrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "waooaw_celery" / "monitoring" / "alerts" / "waooaw.rules.yml"
TESTS = ROOT / "tests" / "data" / "alerts.test.yml"
RUNBOOK = ROOT / "docs" / "runbook.md"
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}
#: What a name in an expression may be besides a metric.
_WORDS = re.compile(r"\b(?:waooaw|messaging)_\w+|\bup\b")
_HISTOGRAM = re.compile(r"_(bucket|count|sum)$")


def known_metrics() -> set[str]:
    """Return the names of all metrics of the exporter and of the workers."""
    return {metric.name for metric in metrics.ALL} | set(WORKER_METRICS) | {"up"}


def named_metrics(expression: str) -> set[str]:
    """Return the metrics that an expression names; those of a histogram by the histogram's name."""
    return {_HISTOGRAM.sub("", word) for word in _WORDS.findall(re.sub(r'"[^"]*"', "", expression))}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool."""
    command = [program("promtool"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_rules_are_valid() -> None:
    """By Prometheus's own checker."""
    done = promtool("check", "rules", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_and_ends() -> None:
    """In a time series that has the fault and its end."""
    done = promtool("test", "rules", str(TESTS))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_firing_and_an_ending_case() -> None:
    """Without promtool too: before, during and after the fault."""
    cases = {case["name"]: case for case in yaml.safe_load(TESTS.read_text())["tests"]}
    assert set(cases) == set(ALERTS)
    for name, case in cases.items():
        checks = case["promql_expr_test"]
        assert all(f'alertname="{name}"' in check["expr"] for check in checks)
        assert [bool(check["exp_samples"]) for check in checks] == [False, True, False], name


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_that_is_removed_or_never_fires_is_noticed(name: str, tmp_path: Path) -> None:
    """The test of the rules fails when the alert's expression cannot be true."""
    changed = yaml.safe_load(RULES.read_text())
    for group in changed["groups"]:
        for rule in group["rules"]:
            if rule["alert"] == name:
                rule["expr"] = "vector(1) > 2"
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(changed))
    tests = yaml.safe_load(TESTS.read_text()) | {"rule_files": ["rules.yml"]}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    assert promtool("test", "rules", str(tmp_path / "tests.yml")).returncode != 0


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_it_means_and_where_to_read_on(name: str) -> None:
    """It has a severity, a summary, a description and a link to its section of the runbook, which says all."""
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("warning", "critical")
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert notes["runbook_url"] == f"docs/runbook.md#{name.lower()}"
    sections = re.split(r"^## ", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]
    [section] = [each for each in sections if each.partition("\n")[0] == name]
    for part in ("**What it means.**", "**See it.**", "**Do.**", "**It is over**"):
        assert part in section, f"{name} has no part {part}"


def test_the_runbook_has_no_section_without_an_alert() -> None:
    """So that a renamed alert leaves nothing behind."""
    headings = re.findall(r"^## (Waooaw\w+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    assert sorted(headings) == sorted(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_names_metrics_that_exist(name: str) -> None:
    """Those that the exporter or a worker declares."""
    named = named_metrics(ALERTS[name]["expr"])
    assert named
    assert named <= known_metrics()


def runbook_commands() -> list[str]:
    """Return the commands of this package that the runbook names."""
    text = re.sub(r"\s+", " ", RUNBOOK.read_text())
    return sorted(set(re.findall(r"`waooaw ([^`]+)`", text)))


@pytest.mark.parametrize("command", runbook_commands())
def test_a_command_of_the_runbook_exists(command: str) -> None:
    """With its subcommand and each of its options."""
    found: click.Command = waooaw
    context = click.Context(waooaw)
    words = command.split()
    while words and isinstance(found, click.Group) and re.fullmatch(r"[a-z]+", words[0]):
        name = words.pop(0)
        subcommand = found.get_command(context, name)
        assert subcommand is not None, f"there is no command {name}"
        found = subcommand
    assert not isinstance(found, click.Group) or found.invoke_without_command, "it needs a subcommand"
    options = {option for parameter in found.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
