"""Writes what a run has found as docs/performance.md, with a plot."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from benchmarks.suite.row import Result

Results = Mapping[str, Sequence[Result]]


def machine() -> str:
    """Return the shape of this computer and the versions of what was compared."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    packages = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "redis", "sqlalchemy"))
    return (
        f"{os.cpu_count()} cores, {round(pages * size / 2**30)} GiB of memory, {platform.system()} "
        f"{platform.machine()}, Python {platform.python_version()}, {packages}"
    )


def document(results: Results, missing: Mapping[str, str], rounds: int, command: str) -> str:
    """Return the document.

    Args:
        results: by the title of the group.
        missing: projects that were not compared, and why.
        rounds: how many samples each subject has.
        command: what measured it.
    """
    lines = [
        "# Performance",
        "",
        f"Measured on {datetime.now(UTC):%Y-%m-%d} by `{command}`, which writes this page. Do not edit it.",
        "",
        f"Computer: {machine()}.",
        "",
        f"All subjects of a table took turns in one run of {rounds} rounds, and the order was reversed in each",
        "round. A rate is the median of the rounds. A ratio is the median of the ratios of the rounds, with the",
        "lowest and the highest. Computers differ, and other programs run on them: only ratios mean something.",
        "The column `µs` is the processor time for each message, without the servers.",
        "",
        "![Ratios and targets](performance.svg)",
    ]
    for title, found in results.items():
        lines += ["", f"## {title}", "", *_table(found)]
    if missing:
        lines += ["", "## Not compared", ""]
        lines += [f"- {name}: {reason.splitlines()[0]}" for name, reason in missing.items()]
    return "\n".join(lines) + "\n"


def _table(results: Sequence[Result]) -> Iterator[str]:
    yield "| work | ours | µs | compared with | ratio | target | others |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for result in results:
        row = result.row
        others = " · ".join(f"{name} {_ratio(result, name)}" for name in row.others) or "-"
        yield (
            f"| {row.name} | {number(result.median(row.ours))} {row.unit} | {_cpu(result)} "
            f"| {row.base}: {number(result.median(row.base))} | {_ratio(result, row.ours)} "
            f"| {target(result)} | {others} |"
        )


def target(result: Result) -> str:
    """Return the target of a row, and whether it is met."""
    row, verdict = result.row, "met" if result.met else "**missed**"
    if row.limit is not None:
        return f"≤ {row.limit:g} {row.unit}: {verdict}"
    if row.target is None:
        return "-"
    return f"{'≤' if row.at_most else '≥'} {row.target:g}: {verdict}"


def number(value: float) -> str:
    """Return a value with as many digits as mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(result: Result, subject: str) -> str:
    ratios = result.ratios(subject)
    middle = statistics.median(ratios)
    return f"{middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def _cpu(result: Result) -> str:
    cpu = result.cpu(result.row.ours)
    return "-" if cpu is None else f"{cpu:,.0f}"
