"""What a principal may call: the agents with their schemas, and an OpenAPI document of them."""

from __future__ import annotations

import asyncio
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from waooaw_celery.discovery.agent_info import AgentInfo
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.edges.application import EdgeContext
from waooaw_celery.edges.gateway.catalogue import Operation, operations_of
from waooaw_celery.edges.http import reading
from waooaw_celery.edges.http.openapi.openapi_parts import COMPONENTS, PARAMETERS, PATHS, Schemas, problem_answers
from waooaw_celery.errors import UnknownAgent
from waooaw_celery.worker.execution.threads import run_in_thread


class Description:
    """Answers what can be called.

    Args:
        context: the edge.
    """

    def __init__(self, context: EdgeContext) -> None:
        self._catalogue, self._options = context.gateway.catalogue, context.options
        self._authentication = context.authentication

    async def agents(self, request: Request) -> Response:
        """Answer ``GET /v1/agents``."""
        principal = reading.principal_of(request)
        found = await asyncio.wrap_future(run_in_thread(self._catalogue.agents, principal))
        return JSONResponse({"agents": [_agent_form(info, principal) for info in found]})

    async def agent(self, request: Request) -> Response:
        """Answer ``GET /v1/agents/{agent}``, if the principal may call something of it."""
        principal, name = reading.principal_of(request), request.path_params["agent"]
        info = await asyncio.wrap_future(run_in_thread(self._catalogue.agent, name))
        if not operations_of(info, principal):
            raise UnknownAgent(f"there is no agent {name!r:.80} of which {principal.name} may call a method")
        return JSONResponse(_agent_form(info, principal))

    async def openapi(self, request: Request) -> Response:
        """Answer ``GET /openapi.json``, made from the registry at each request."""
        principal = reading.principal_of(request)
        found = await asyncio.wrap_future(run_in_thread(self._catalogue.agents, principal))
        operations = [each for info in found for each in operations_of(info, principal)]
        return JSONResponse(openapi_of(operations, self._options.public_url, self._authentication.schemes()))


def openapi_of(operations: list[Operation], url: str, security: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return an OpenAPI 3.1 document.

    Args:
        operations: what can be called.
        url: the address of the edge.
        security: the security schemes, by name.
    """
    schemas = Schemas(dict(COMPONENTS))
    paths = dict(PATHS)
    for each in operations:
        paths[f"/v1/agents/{each.agent}/methods/{each.method}"] = {"post": _operation(each, schemas)}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Agents", "version": _version()},
        "servers": [{"url": url}],
        "paths": paths,
        "components": {"schemas": schemas.components},
    }
    if security:
        document["components"]["securitySchemes"] = security
        document["security"] = [{name: []} for name in security]
    return document


def _operation(operation: Operation, schemas: Schemas) -> dict[str, Any]:
    name = f"{operation.agent}.{operation.method}"
    task: dict[str, Any] = {"$ref": "#/components/schemas/Task"}
    if operation.result is not None:
        result = schemas.hoisted(operation.result, f"{name}.result")
        task = {"allOf": [task, {"properties": {"result": result}}]}
    ended: dict[str, Any] = {"application/json": {"schema": task}}
    if operation.part is not None:
        ended["text/event-stream"] = {"schema": schemas.hoisted(operation.part, f"{name}.part")}
    return {
        "operationId": name,
        "summary": operation.description.partition("\n")[0],
        "tags": [operation.agent],
        "parameters": PARAMETERS,
        "requestBody": {
            "content": {"application/json": {"schema": schemas.hoisted(operation.parameters, f"{name}.arguments")}}
        },
        "responses": {
            "200": {"description": "It has ended.", "content": ended},
            "202": {
                "description": "It goes on; Location is its task.",
                "headers": {"Location": {"schema": {"type": "string"}}},
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Task"}}},
            },
            **problem_answers(400, 401, 403, 404, 409, 422, 429, 500, 503, 504),
        },
    }


def _agent_form(info: AgentInfo, principal: Principal) -> dict[str, Any]:
    return {
        "name": info.name,
        "status": str(info.status),
        "tags": list(info.tags),
        "methods": [
            {
                "name": each.method,
                "is_workflow": each.is_workflow,
                "description": each.description,
                "parameters": each.parameters,
                "result": each.result,
                "part": each.part,
            }
            for each in operations_of(info, principal)
        ],
    }


def _version() -> str:
    try:
        return version("waooaw-celery")
    except PackageNotFoundError:  # it runs from its source
        return "unknown"
