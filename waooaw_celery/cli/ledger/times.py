"""The options of a period: a date or a time as an argument."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click


class TimeParam(click.ParamType[datetime]):
    """A command-line argument that is a date or time in ISO 8601; without a time zone it is UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Parse the value."""
        if isinstance(value, datetime):
            return value
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value} is not a time, such as 2026-11-22 or 2026-11-22T13:57", param, ctx)
        return time if time.tzinfo else time.replace(tzinfo=UTC)


since_option = click.option("--since", type=TimeParam(), help="Sent at this time or later.")
until_option = click.option("--until", type=TimeParam(), help="Sent before this time.")
