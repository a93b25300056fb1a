"""The parts of the OpenAPI document that are the same for all agents, and the schemas within it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_TEXT = {"type": "string"}
_TIME = {"type": "string", "format": "date-time"}
_OPTIONAL_TEXT = {"type": ["string", "null"]}
_FORBIDDEN = re.compile(r"[^A-Za-z0-9._-]")

#: The schemas that all operations use.
COMPONENTS: dict[str, Any] = {
    "Task": {
        "type": "object",
        "required": ["task_id", "agent", "method", "state", "result", "error"],
        "properties": {
            "task_id": _TEXT,
            "agent": _TEXT,
            "method": _TEXT,
            "is_workflow": {"type": "boolean"},
            "state": {
                "enum": ["submitted", "working", "input required", "completed", "failed", "expired", "cancelled"]
            },
            "conversation_id": _TEXT,
            "arguments": {},
            "result": {},
            "error": {
                "type": ["object", "null"],
                "properties": {"type": _TEXT, "message": _TEXT},
            },
            "waits_for": _OPTIONAL_TEXT,
            "progress": {},
            "created_at": _TIME,
            "updated_at": _TIME,
        },
    },
    "Receipt": {
        "type": "object",
        "required": ["message_id", "status"],
        "properties": {
            "message_id": _TEXT,
            "from_agent": _TEXT,
            "to_agent": _TEXT,
            "handler": _TEXT,
            "status": _TEXT,
            "attempts": {"type": "integer"},
            "sent_at": _TIME,
            "finished_at": {"type": ["string", "null"], "format": "date-time"},
            "error": _OPTIONAL_TEXT,
        },
    },
    "Problem": {
        "type": "object",
        "required": ["type", "status", "detail"],
        "properties": {
            "type": _TEXT,
            "status": {"type": "integer"},
            "detail": _TEXT,
            "task": {"$ref": "#/components/schemas/Task"},
        },
    },
}


class Schemas:
    """The schemas of a document, by name.

    Args:
        components: those that are there already.
    """

    def __init__(self, components: dict[str, Any]) -> None:
        self.components = components

    def hoisted(self, schema: Mapping[str, Any], name: str) -> Any:
        """Return a JSON Schema without definitions of its own: they become schemas of the document.

        Args:
            schema: the schema.
            name: what its definitions are called.
        """
        prefix = _FORBIDDEN.sub("-", name)
        for key, each in schema.get("$defs", {}).items():
            self.components[f"{prefix}.{_FORBIDDEN.sub('-', key)}"] = _referring(each, prefix)
        return _referring({key: each for key, each in schema.items() if key != "$defs"}, prefix)


def _referring(schema: Any, prefix: str) -> Any:
    """Return a copy of a schema that refers to the document's schemas."""
    if isinstance(schema, list):
        return [_referring(each, prefix) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: _referring(each, prefix) for key, each in schema.items()}
    target = schema.get("$ref")
    if isinstance(target, str) and target.startswith("#/$defs/"):
        name = _FORBIDDEN.sub("-", target.removeprefix("#/$defs/"))
        found["$ref"] = f"#/components/schemas/{prefix}.{name}"
    return found


def problem_answers(*statuses: int) -> dict[str, Any]:
    """Return the answers with problem details, by status."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(status): {"description": _MEANINGS[status], "content": content} for status in statuses}


_MEANINGS = {
    400: "The request is invalid.",
    401: "The request shows no credentials, or wrong ones.",
    403: "The principal may not do this.",
    404: "There is none.",
    409: "It was cancelled, or has ended.",
    415: "The body has another type.",
    422: "The arguments are invalid, or the Idempotency-Key belongs to another request.",
    429: "Too many: try again after Retry-After.",
    500: "The handler failed.",
    503: "A server behind the edge does not answer: try again after Retry-After.",
    504: "It has not ended in time.",
}


def _parameter(name: str, where: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": where, "schema": schema, "description": description, "required": where == "path"}


_KEY = _parameter("Idempotency-Key", "header", _TEXT, "The same key again is the same request.")
#: The parameters of each call.
PARAMETERS: list[dict[str, Any]] = [
    _KEY,
    _parameter("Prefer", "header", _TEXT, "wait=SECONDS, or respond-async (RFC 7240)."),
    _parameter("timeout", "query", {"type": "number", "exclusiveMinimum": 0}, "Seconds that it may take."),
    _parameter("priority", "query", {"enum": ["URGENT", "HIGH", "NORMAL", "LOW"]}, "How urgent it is."),
    _parameter("conversation", "query", _TEXT, "The conversation to which it belongs."),
]


def _answer(description: str, schema: str, kind: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


_ID = _parameter("id", "path", _TEXT, "The id.")
_OBJECT = {"content": {"application/json": {"schema": {"type": "object"}}}}
_CLOUDEVENT = {"type": "object", "required": ["specversion", "id", "source", "type"]}

#: The paths that are the same for all agents.
PATHS: dict[str, Any] = {
    "/v1/tasks/{id}": {
        "get": {
            "operationId": "getTask",
            "parameters": [_ID],
            "responses": {"200": _answer("The task.", "Task"), **problem_answers(401, 404, 503)},
        },
        "delete": {
            "operationId": "cancelTask",
            "parameters": [_ID],
            "responses": {
                "200": _answer("It has ended.", "Task"),
                "202": _answer("Its cancellation is recorded.", "Task"),
                **problem_answers(401, 404, 409, 503),
            },
        },
    },
    "/v1/tasks/{id}/events": {
        "get": {
            "operationId": "followTask",
            "parameters": [_ID],
            "responses": {
                "200": _answer("Events task, then result or error.", "Task", "text/event-stream"),
                **problem_answers(401, 404, 503),
            },
        }
    },
    "/v1/tasks/{id}/signals/{name}": {
        "post": {
            "operationId": "signalTask",
            "parameters": [_ID, _parameter("name", "path", _TEXT, "The name of the signal."), _KEY],
            "requestBody": {"content": {"application/json": {"schema": {}}}},
            "responses": {"202": _answer("It is recorded.", "Task"), **problem_answers(400, 401, 404, 409, 503)},
        }
    },
    "/v1/agents/{agent}/messages": {
        "post": {
            "operationId": "sendMessage",
            "parameters": [_parameter("agent", "path", _TEXT, "The recipient."), _KEY],
            "requestBody": _OBJECT,
            "responses": {
                "202": _answer("The broker has it.", "Receipt"),
                **problem_answers(400, 401, 403, 404, 422, 429, 503),
            },
        }
    },
    "/v1/receipts/{id}": {
        "get": {
            "operationId": "getReceipt",
            "parameters": [_ID],
            "responses": {"200": _answer("The receipt.", "Receipt"), **problem_answers(401, 404, 503)},
        }
    },
    "/v1/events": {
        "post": {
            "operationId": "publishEvents",
            "requestBody": {
                "content": {
                    "application/cloudevents+json": {"schema": _CLOUDEVENT},
                    "application/cloudevents-batch+json": {"schema": {"type": "array", "items": _CLOUDEVENT}},
                }
            },
            "responses": {
                "202": {"description": "They are published."},
                **problem_answers(400, 401, 403, 415, 422, 429, 503),
            },
        }
    },
}
