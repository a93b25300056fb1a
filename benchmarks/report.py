"""How a benchmark prints what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Goal:
    """A goal: a value, and the bound that it should keep.

    Attributes:
        what: what is compared.
        value: what was found.
        bound: what it should be.
        at_most: whether the value should be at most the bound, and not at least.
        unit: of both, such as ``ms``; empty for a ratio.
    """

    what: str
    value: float
    bound: float
    at_most: bool = False
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the value keeps the bound."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound


def report(title: str, rates: Mapping[str, float], base: str | None, goals: Sequence[Goal]) -> None:
    """Print rates, each also as a multiple of the base, and the goals."""
    console = Console()
    table = Table("", "per second", f"x {base}" if base else "", title=title)
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / rates[base]:.2f}" if base else "")
    if rates:
        console.print(table)
    print_goals(console, title, goals)


def print_goals(console: Console, title: str, goals: Sequence[Goal]) -> None:
    """Print the goals and whether they are met."""
    table = Table("goal", "found", "bound", "", title=f"{title}: goals")
    for goal in goals:
        sign = "≤" if goal.at_most else "≥"
        verdict = "[green]met[/]" if goal.met else "[red]missed[/]"
        table.add_row(goal.what, f"{goal.value:.2f} {goal.unit}", f"{sign} {goal.bound:g} {goal.unit}", verdict)
    console.print(table)
