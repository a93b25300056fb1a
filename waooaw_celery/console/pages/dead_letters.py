"""The dead letters: why messages died, and the forms that retry, edit and discard them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter, payload_in, read_content
from waooaw_celery.console.access.roles import Role
from waooaw_celery.console.pages.messages import parse_time
from waooaw_celery.console.rendering import Pages
from waooaw_celery.errors import InvalidMessage, WaooawError

#: Dead letters on the page.
LIMIT = 200
#: Characters of a reason by which dead letters are counted: its end often has an id.
_REASON = 80


def routes(app: AgentApp, pages: Pages) -> Sequence[BaseRoute]:
    """Return the routes of the dead letters."""

    def dead_letters(request: Request) -> Response:
        given = {
            name: request.query_params.get(name, "").strip() for name in ("agent", "queue", "reason", "since")
        }
        found: Sequence[DeadLetter] = []
        problem = None
        try:
            filters: dict[str, Any] = {name: given[name] or None for name in ("agent", "queue", "reason")}
            found = app.dead_letters.list(since=parse_time(given["since"]), limit=LIMIT, **filters)
        except InvalidMessage as error:
            problem = str(error)
        reasons = Counter(letter.reason[:_REASON] for letter in found)
        return pages.draw(
            request,
            "dead_letters.html",
            status=400 if problem else 200,
            letters=found,
            given=given,
            reasons=reasons.most_common(10),
            limit=LIMIT,
            problem=problem,
        )

    def dead_letter(request: Request) -> Response:
        letter = app.dead_letters.get(request.path_params["id"])
        payload, unreadable = None, None
        if request.state.person.may(Role.OFFICER):
            payload, unreadable = _payload(app, letter)
        return pages.draw(request, "dead_letter.html", letter=letter, payload=payload, unreadable=unreadable)

    return Route("/dead-letters", dead_letters), Route("/dead-letters/{id:path}", dead_letter)


def _payload(app: AgentApp, letter: DeadLetter) -> tuple[Any, str | None]:
    """Return the payload of a dead letter, or why it cannot be read."""
    try:
        return payload_in(read_content(letter, app.packer.caps), app.components.large_payloads.load), None
    except WaooawError as error:
        return None, str(error)
