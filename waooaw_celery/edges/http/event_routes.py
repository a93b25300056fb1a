"""CloudEvents 1.0 by HTTP: structured, batched and binary; each is published to our subscribers."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import unquote
from uuid import NAMESPACE_OID, uuid5

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from waooaw_celery.agents.events.bus import EventBus
from waooaw_celery.agents.events.cloudevents import from_cloudevent
from waooaw_celery.app.events.delivery import Published
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.application import EdgeContext
from waooaw_celery.edges.http import reading
from waooaw_celery.edges.http.problems import Problem
from waooaw_celery.edges.http.task_forms import receipt_form
from waooaw_celery.messages.topics.patterns import check_topic
from waooaw_celery.worker.execution.threads import run_in_thread

STRUCTURED, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"
#: Most events of one batch.
MAX_BATCH = 500
_PREFIX = "ce-"
_ATTRIBUTE = re.compile(r"[a-z0-9]{1,60}")


class Events:
    """Publishes CloudEvents.

    Args:
        context: the edge.
    """

    def __init__(self, context: EdgeContext) -> None:
        self._bus = EventBus(context.gateway.app)

    async def publish(self, request: Request) -> Response:
        """Answer ``POST /v1/events``. Of a batch, all events are checked before the first is published."""
        principal = reading.principal_of(request)
        checked = [_arguments(principal, event) for event in _read(request, await request.body())]
        published = [
            await asyncio.wrap_future(
                run_in_thread(
                    self._bus.publish,
                    **arguments,
                    from_agent=principal.from_agent,
                    identity=principal.identity("http"),
                )
            )
            for arguments in checked
        ]
        return JSONResponse({"events": [_form(each) for each in published]}, 202)


def _read(request: Request, body: bytes) -> list[Any]:
    """Return the CloudEvents of a request, in the JSON format."""
    kind = reading.media_type(request)
    if kind == STRUCTURED:
        return [reading.parse_json(body)]
    if kind == BATCH:
        events = reading.parse_json(body)
        if not isinstance(events, list) or len(events) > MAX_BATCH:
            raise Problem(400, f"a batch must be a JSON array of at most {MAX_BATCH} CloudEvents")
        return events
    if "ce-specversion" in request.headers or "ce-id" in request.headers:
        return [_binary(request, body)]
    raise Problem(
        415, f"send a CloudEvent as {STRUCTURED} or {BATCH}, or with the headers ce-specversion, ce-id and so on"
    )


def _binary(request: Request, body: bytes) -> dict[str, Any]:
    """Return a CloudEvent in binary mode in the JSON format."""
    event: dict[str, Any] = {}
    for header, value in request.headers.items():
        name = header.removeprefix(_PREFIX)
        if name == header:
            continue
        if name in event or not _ATTRIBUTE.fullmatch(name) or name in ("data", "datacontenttype"):
            raise Problem(400, f"the header {header:.80} is twice there, or is no attribute of a CloudEvent")
        event[name] = _decoded(header, value)
    kind = reading.media_type(request)
    if kind:
        event["datacontenttype"] = request.headers["content-type"]
    if not body:
        return event
    if kind in ("", "application/json", "text/json") or kind.endswith("+json"):
        event["datacontenttype"] = "application/json"
        return event | {"data": reading.parse_json(body)}
    if not kind.startswith("text/"):
        raise Problem(415, f"the event's data is {kind:.80}: it must be JSON, or text")
    try:
        return event | {"data": body.decode()}
    except UnicodeDecodeError:
        raise Problem(400, "the event's text is not UTF-8") from None


def _decoded(header: str, value: str) -> str:
    """Return the value of a header as the binding has it: quoted perhaps, and percent-encoded UTF-8."""
    text = value
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = re.sub(r"\\(.)", r"\1", text[1:-1])
    try:
        # Starlette decodes headers as Latin-1. Some clients send UTF-8 without encoding it.
        return unquote(text.encode("latin-1").decode(), errors="strict")
    except UnicodeError:
        raise Problem(400, f"the header {header:.80} is not percent-encoded UTF-8") from None


def _arguments(principal: Principal, event: Any) -> dict[str, Any]:
    """Return the arguments of ``EventBus.publish`` for a CloudEvent, once it was checked."""
    if isinstance(event, dict) and not isinstance(event.get("dataschema"), str | None):
        raise Problem(400, "the CloudEvent's dataschema must be a string")
    arguments = from_cloudevent(event)
    principal.check_may_publish(check_topic(arguments["topic"]))
    # Of CloudEvents, only source and id together are unique, and a principal must not use up the ids of another.
    own = f"{principal.name}\x00{arguments['source']}\x00{arguments['event_id']}"
    return arguments | {"event_id": str(uuid5(NAMESPACE_OID, own))}


def _form(published: Published) -> dict[str, Any]:
    return {
        "event_id": published.event_id,
        "topic": published.topic,
        "receipts": {name: receipt_form(receipt) for name, receipt in published.receipts.items()},
    }
