"""The messages of the ledger: the search, and one message with its facts, its cause and what it caused."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from waooaw_celery.app.app import AgentApp
from waooaw_celery.console.access.roles import Role
from waooaw_celery.console.rendering import Pages
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.ledger.read.records import AuditRecord
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority

#: Messages on a page, and the seconds for which a search with rare matches goes on before it shows what it has.
PAGE_SIZE, SEARCH_SECONDS = 50, 0.06
#: The fields of the search.
FIELDS = (
    "from",
    "to",
    "type",
    "status",
    "priority",
    "handler",
    "correlation_id",
    "conversation_id",
    "identity",
    "topic",
    "since",
    "until",
    "text",
)


def routes(app: AgentApp, pages: Pages) -> Sequence[BaseRoute]:
    """Return the routes of the messages."""

    def messages(request: Request) -> Response:
        given = {name: request.query_params.get(name, "").strip() for name in FIELDS}
        if given["text"] and not request.state.person.may(Role.OFFICER):
            return pages.error(
                request, 403, "Only an officer searches payloads, because the result tells their text."
            )
        problem = None
        records: list[AuditRecord] = []
        after = None
        try:
            records, after = _search(app, given, request.query_params)
        except InvalidMessage as error:
            problem = str(error)
        return pages.draw(
            request,
            "messages.html",
            status=400 if problem else 200,
            given=given,
            records=records,
            after=after,
            problem=problem,
            types=[each.value for each in MessageType],
            statuses=[each.value for each in MessageStatus],
            priorities=[each.name.lower() for each in Priority],
        )

    def message(request: Request) -> Response:
        trail = MessageAuditTrail(app.ledger)
        record = trail.receipt(request.path_params["id"])
        status = record.receipt.status
        letters = app.dead_letters.list(message_id=record.receipt.message_id) if status in _MAY_BE_DEAD else []
        return pages.draw(
            request,
            "message.html",
            record=record,
            is_final=status.final,
            consequences=trail.consequences(record),
            letters=letters,
        )

    def message_json(request: Request) -> Response:
        if not request.state.person.may(Role.OFFICER):
            return pages.error(request, 403, "Only an officer sees payloads.")
        found = MessageAuditTrail(app.ledger).receipt(request.path_params["id"])
        record = replace(found, payload=app.ledger.payload(found)).to_dict()
        # Escaped to ASCII: a payload may have half of a surrogate pair, which UTF-8 cannot write.
        return Response(json.dumps(record), media_type="application/json")

    return (
        Route("/messages", messages),
        Route("/messages/{id}", message),
        Route("/messages/{id}/json", message_json),
    )


_MAY_BE_DEAD = (MessageStatus.FAILED, MessageStatus.DEAD)


def _search(app: AgentApp, given: dict[str, str], parameters: QueryParams) -> tuple[list[AuditRecord], str | None]:
    """Return the messages of a page, and where the next one begins.

    Raises:
        InvalidMessage: a field of the search is not valid.
    """
    filters: dict[str, Any] = {
        "from_agent": given["from"] or None,
        "to_agent": given["to"] or None,
        "message_type": _one_of(MessageType, given["type"]),
        "status": _one_of(MessageStatus, given["status"]),
        "priority": Priority.of(given["priority"]) if given["priority"] else None,
        "since": parse_time(given["since"]),
        "until": parse_time(given["until"]),
    }
    for name in ("handler", "correlation_id", "conversation_id", "identity", "topic", "text"):
        filters[name] = given[name] or None
    after = _parse_after(parameters.get("after", ""))
    trail = MessageAuditTrail(app.ledger)
    records: list[AuditRecord] = []
    ends_at = time.monotonic() + SEARCH_SECONDS
    while True:
        page = trail.query(limit=PAGE_SIZE - len(records), after=after, payloads=False, **filters)
        records += page.records
        after = page.after
        if after is None or len(records) >= PAGE_SIZE or time.monotonic() >= ends_at:
            return records, None if after is None else f"{after[0].isoformat()}|{after[1]}"


def _one_of(kind: Any, text: str) -> Any:
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        raise InvalidMessage(f"{text!r:.80} is none of {', '.join(kind)}") from None


def parse_time(text: str) -> datetime | None:
    """Return the time that a field of a form has; without a zone it is UTC.

    Raises:
        InvalidMessage: it is no time.
    """
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # such as midnight of the year 1, east of Greenwich
        raise InvalidMessage(f"{text!r:.80} is no time, such as 2026-11-30T09:30") from None


def _parse_after(text: str) -> tuple[datetime, str] | None:
    at, _, id_ = text.partition("|")
    moment = parse_time(at)
    return None if moment is None else (moment, id_)
