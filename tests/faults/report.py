"""The table of the results: on the screen, and in docs/reliability.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from faults.account import Account
from faults.catalogue import Fault
from faults.stacks import ROOT

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- the table of dev.py faults --write -->", "<!-- the end of the table -->"
TITLES = (
    "fault",
    "broker",
    "rounds",
    "accepted",
    "handled",
    "twice",
    "failed, dead",
    "expired",
    "refused, unknown",
    "lost",
    "recovery",
    "slowest call",
    "plain Celery",
)


class Row(NamedTuple):
    """The result of one fault on one broker.

    Attributes:
        fault: the fault.
        broker: the broker.
        rounds: how many times it was caused.
        account: the account of the agents.
        violations: one sentence for each violated invariant.
        plain: rounds, account and violations of plain Celery, or None.
    """

    fault: Fault
    broker: str
    rounds: int
    account: Account
    violations: list[str]
    plain: tuple[int, Account, list[str]] | None


def cells(row: Row) -> Iterator[str]:
    """Yield the cells of a row."""
    account = row.account
    yield f"{row.fault.number} {row.fault.name}"
    yield row.broker
    yield str(row.rounds)
    for number in (account.accepted, account.handled, account.duplicates, account.dead, account.expired):
        yield f"{number:,}"
    yield f"{account.refused:,}, {account.unknown:,}" if account.refused or account.unknown else ""
    yield f"{len(account.lost)}" if not row.violations else f"{len(account.lost)} (!)"
    yield _spread(account.recoveries or account.probes)
    yield f"{account.slowest:.1f} s"
    yield _compared(row)


def _spread(seconds: Sequence[float]) -> str:
    found = sorted(seconds)
    if not found:
        return ""
    if math.isinf(found[-1]):
        return "never"
    late = found[min(math.ceil(0.99 * len(found)), len(found)) - 1]
    return f"{statistics.median(found):.1f}, {late:.1f} s"


def _compared(row: Row) -> str:
    if row.plain is None:
        return ""
    rounds, account, violations = row.plain
    differences = []
    if account.lost:
        differences.append(f"lost {len(account.lost)} of {account.accepted:,}")
    if account.audit_errors:
        differences.append(f"{len(account.audit_errors)} not audited")
    if account.duplicates > row.account.duplicates * rounds / row.rounds + 1:
        differences.append(f"{account.duplicates} twice")
    if any(math.isinf(probe) for probe in account.probes):
        differences.append("stops working")
    elif any(sentence.startswith("stuck") for sentence in violations):
        differences.append("gets stuck")
    if account.broken and not any(sentence.startswith("stuck") for sentence in account.broken):
        differences.append(f"{len(account.broken)} other faults")
    if account.slowest > row.fault.deadline + 0.5:
        differences.append(f"a call of {account.slowest:.0f} s")
    return f"{rounds} rounds: {', '.join(differences) or 'the same'}"


def show(rows: Sequence[Row]) -> None:
    """Print the table and the violations."""
    table = Table()
    for number, title in enumerate(TITLES):
        table.add_column(title, justify="left" if number in (0, 1, len(TITLES) - 1) else "right")
    for row in rows:
        table.add_row(*cells(row))
    console = Console()
    console.width = max(console.width, 170)
    console.print(table)
    for row in rows:
        for sentence in row.violations:
            print(f"{row.fault.number}, {row.broker}: {sentence}")


def markdown(rows: Sequence[Row], seed: int, seconds: float) -> str:
    """Return the table and the violations as Markdown."""
    lines = [f"| {' | '.join(TITLES)} |", f"|{' --- |' * len(TITLES)}"]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    broken = [f"* {row.fault.number}, {row.broker}: {sentence}" for row in rows for sentence in row.violations]
    day = datetime.now(UTC).date().isoformat()
    lines += ["", f"Measured on {day} with seed {seed}, in {seconds / 60:.0f} minutes on two cores."]
    if broken:
        lines += ["", "**Violated invariants:**", "", *broken]
    return "\n".join(lines)


def write(table: str) -> None:
    """Replace the table in the page."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
