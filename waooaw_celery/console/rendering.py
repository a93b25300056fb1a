"""Draws the pages: Jinja2's templates, with everything from data escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from waooaw_celery.app.app import AgentApp
from waooaw_celery.console.access.roles import Person, Role
from waooaw_celery.errors import StoreUnavailable, UnknownMessage
from waooaw_celery.ledger.operators.actions import OperatorAction, read_action
from waooaw_celery.messages.log.escaping import escaped
from waooaw_celery.messages.validation import tagged

#: Most characters of a payload that a page shows; the JSON of the message has all of it.
MAX_PAYLOAD = 100_000
#: Stands for what is not known, or is not there.
UNKNOWN = "\N{EN DASH}"
#: What may not print.
_UNPRINTABLE = re.compile("[^ -~]")
#: The pages of the menu: path and name.
MENU = (
    ("/", "Overview"),
    ("/agents", "Agents"),
    ("/messages", "Messages"),
    ("/dead-letters", "Dead letters"),
    ("/workflows", "Workflows"),
    ("/topics", "Topics"),
    ("/limits", "Limits"),
    ("/retention", "Retention"),
    ("/ledger", "Ledger"),
    ("/changes", "Changes"),
)


class Pages:
    """Draws pages.

    Args:
        app: the application.
        allow_changes: whether the pages have forms.
        logout_path: path that ends a session; None: there is none.
    """

    def __init__(self, app: AgentApp, *, allow_changes: bool, logout_path: str | None) -> None:
        self._app = app
        self._environment = Environment(
            loader=PackageLoader("waooaw_celery.console"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=visible,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(
            time=time_element, ago=ago, seconds=seconds, json=pretty, percent=percent, path=path_part, query=query
        )
        self._environment.globals.update(
            menu=MENU,
            Role=Role,
            allow_changes=allow_changes,
            logout_path=logout_path,
            has_ledger=app.settings.database_url is not None,
        )

    def draw(self, request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        """Return a page.

        Args:
            request: the request.
            template: name of the template.
            status: the HTTP status.
            context: what the template shows.
        """
        return HTMLResponse(self.text(request, template, **context), status)

    def text(self, request: Request, template: str, **context: Any) -> str:
        """Return the HTML of a template, such as a part of a page."""
        person: Person = request.state.person
        return self._environment.get_template(template).render(
            here=request.url.path,
            address=f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path,
            person=person,
            may_see_payloads=person.may(Role.OFFICER),
            csrf=request.state.csrf,
            change=self._change(request),
            now=datetime.now(UTC),
            **context,
        )

    def error(self, request: Request, status: int, sentence: str) -> HTMLResponse:
        """Return a page that says what is wrong."""
        return self.draw(request, "error.html", status, code=status, sentence=sentence)

    def _change(self, request: Request) -> OperatorAction | None:
        """Return the change that led to this page."""
        action_id = request.query_params.get("change")
        if action_id is None or self._app.settings.database_url is None:
            return None
        try:
            return read_action(self._app.database, action_id)
        except (UnknownMessage, StoreUnavailable):  # the page itself says what is wrong with the database
            return None


def visible(value: Any) -> Any:
    """Return a text with an escape for everything that does not print, such as a change of direction."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "\n".join(map(escaped, value.split("\n")))


def time_element(moment: datetime | None, default: str = UNKNOWN, *, precise: bool = False) -> Markup:
    """Return a time as HTML. The browser shows it in its own zone; without scripts it is in UTC.

    Args:
        moment: the time.
        default: what is shown for None.
        precise: whether milliseconds are shown.
    """
    if moment is None:
        return Markup(default)  # noqa: S704 - a constant of a template
    utc = moment.astimezone(UTC)
    kind = Markup(' class="precise"') if precise else ""
    shown = f"{utc:%Y-%m-%d %H:%M:%S.%f}"[:-3] if precise else f"{utc:%Y-%m-%d %H:%M:%S}"
    return Markup('<time{} datetime="{}">{} UTC</time>').format(
        kind, utc.isoformat(timespec="milliseconds"), shown
    )


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """Return how long ago a time was, such as ``5 min ago``."""
    if moment is None:
        return "never"
    return f"{seconds(max(((now or datetime.now(UTC)) - moment).total_seconds(), 0.0))} ago"


def seconds(value: float | None) -> str:
    """Return a duration with its unit, such as ``12 ms`` or ``3 min``."""
    if value is None:
        return UNKNOWN
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if value >= size:
            return f"{value / size:.0f} {unit}"
    if value >= 1:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value * 1000:.0f} ms"


def percent(part: float | None, whole: float | None) -> str:
    """Return a share, such as ``2.5 %``."""
    return UNKNOWN if not whole or part is None else f"{100 * part / whole:.2g} %" if part < whole else "100 %"


def pretty(value: Any, *, whole: bool = False) -> str:
    """Return a JSON value as text on several lines.

    Args:
        value: the value.
        whole: whether it is kept whole, as in a form; otherwise it is cut where it is too long for a page.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, default=tagged)
    length = len(text)
    if not whole:
        text = text[:MAX_PAYLOAD]
    text = "\n".join(_UNPRINTABLE.sub(_json_escape, line) for line in text.split("\n"))
    if whole or length <= MAX_PAYLOAD:
        return text
    return f"{text}\n… cut: {length:,} characters in all. The message's JSON has the rest."


def _json_escape(found: re.Match[str]) -> str:
    char = found[0]
    return char if escaped(char) == char else json.dumps(char)[1:-1]


def path_part(text: str) -> str:
    """Return a text as one part of a path."""
    return quote(text, safe="")


def query(values: Mapping[str, Any], **changes: Any) -> str:
    """Return the query of an address, without the empty values."""
    given = {**values, **changes}
    return urlencode({name: value for name, value in given.items() if value not in (None, "")})
