"""Shows times to people: in the computer's time zone, or in UTC with ``--utc``. The zone is always named."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import click

#: The key of a command's context that says that ``--utc`` was given.
UTC_KEY = "waooaw.utc"


def in_zone(at: datetime) -> datetime:
    """Return a time in the zone in which times are shown.

    Args:
        at: an aware time.
    """
    ctx = click.get_current_context(silent=True)
    return at.astimezone(UTC if ctx is not None and ctx.meta.get(UTC_KEY) else None)


def time_text(at: datetime, *, fraction: bool = False) -> str:
    """Return a time for a sentence or a fact, with its zone, such as ``2026-11-28 13:00:00 CET``.

    Args:
        at: an aware time.
        fraction: whether to show milliseconds.
    """
    shown = in_zone(at)
    return f"{_digits(shown, fraction)} {zone_name(shown)}"


def clock_text(at: datetime) -> str:
    """Return the hour, minute and second of a time, with its zone, such as ``13:00:00 CET``."""
    shown = in_zone(at)
    return f"{shown:%H:%M:%S} {zone_name(shown)}"


def common_zone(times: Sequence[datetime]) -> str | None:
    """Return the name of the zone that all these times have where they are shown; None if they differ.

    They differ where the clock is changed between them: from summer to winter time, for example.
    """
    names = {zone_name(in_zone(each)) for each in times}
    return names.pop() if len(names) == 1 else None


def cell_text(at: datetime) -> str:
    """Return a time for a column whose heading names the zone, such as ``2026-11-28 13:00:00``."""
    return _digits(in_zone(at), fraction=False)


def zone_name(at: datetime) -> str:
    """Return the name of a time's zone, such as ``CET``, or its distance from UTC, such as ``UTC+05:30``."""
    name = at.tzname() or ""
    if name.isalpha():
        return name
    text = f"{at:%z}"  # some zones have no other name
    return f"UTC{text[:3]}:{text[3:5]}"


def _digits(shown: datetime, fraction: bool) -> str:
    return f"{shown:%Y-%m-%d %H:%M:%S.%f}"[:-3] if fraction else f"{shown:%Y-%m-%d %H:%M:%S}"
