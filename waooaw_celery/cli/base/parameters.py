"""Types of arguments and options: times, and names of agents that a shell completes."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from click.shell_completion import CompletionItem

from waooaw_celery.cli.base.agent_names import known_agents

#: The units of a time span before now.
_UNITS = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})(?: ago)?")


class TimeParam(click.ParamType[datetime]):
    """A date or time in ISO 8601, or a span before now, such as ``2h``, ``30min`` or ``7d``.

    A time without a zone is in UTC, whatever zone the tables show.
    """

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Parse the value, and return an aware time."""
        if isinstance(value, datetime):
            return value
        if (span := _SPAN.fullmatch(value.strip())) is not None:
            try:
                return datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: float(span[1])})
            except OverflowError:
                self.fail(f"{value} is too long ago", param, ctx)
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value} is not a time, such as 2026-11-22, 2026-11-22T13:57 (in UTC) or 2h", param, ctx)
        return time if time.tzinfo else time.replace(tzinfo=UTC)


class AgentParam(click.ParamType[str]):
    """The name of an agent. A shell completes it if the servers answer within a second."""

    name = "agent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name as it is: what sends to it checks it."""
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the known agents whose names begin so; none if no server answers."""
        return [CompletionItem(name) for name in known_agents(ctx) if name.startswith(incomplete)]


#: The type of each argument and option that names an agent.
AGENT = AgentParam()
