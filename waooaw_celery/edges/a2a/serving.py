"""Serves A2A: the card of each agent, and the JSON-RPC and HTTP+JSON bindings.

Each agent has its own addresses, below ``/a2a/<agent>``. The agent is looked up at each request: agents come and
go while an edge runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from a2a.server import jsonrpc_models
from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.response_helpers import agent_card_to_dict, build_error_response
from a2a.server.routes import DefaultServerCallContextBuilder, create_jsonrpc_routes, create_rest_routes
from a2a.utils.constants import AGENT_CARD_WELL_KNOWN_PATH
from a2a.utils.error_handlers import build_rest_error_payload
from a2a.utils.errors import InvalidRequestError, JSONParseError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from waooaw_celery.edges.a2a.card import agent_card
from waooaw_celery.edges.a2a.push.configs import open_configs
from waooaw_celery.edges.a2a.push.notifications import PushNotifications
from waooaw_celery.edges.a2a.push.settings import PushSettings
from waooaw_celery.edges.a2a.request_handler import AGENT, PRINCIPAL, REQUEST, LedgerRequestHandler
from waooaw_celery.edges.application import EdgeContext, ProtocolParts
from waooaw_celery.edges.gateway.catalogue import operations_of
from waooaw_celery.edges.protection.bounds import refused
from waooaw_celery.errors import InvalidMessage, StoreUnavailable, UnknownAgent
from waooaw_celery.worker.execution.threads import run_in_thread

_BASE = "/a2a/{agent}"
#: An escape that may be half of a surrogate pair.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
#: Seconds for which a client may use a card without asking again.
_CARD_SECONDS = 60


def parts(context: EdgeContext) -> ProtocolParts:
    """Return what A2A adds to an edge.

    The cards are open to everybody: the names of all methods and workflows, and the first paragraphs of their
    docstrings, become public. Everything else needs authentication.

    Args:
        context: what the edge gives to its protocols.
    """
    configs = open_configs(context.gateway.app)
    notifications = PushNotifications(context.gateway, configs, context.options.allowed_networks)
    handler = LedgerRequestHandler(context, PushSettings(configs, notifications, context.options.allowed_networks))
    builder = _ContextBuilder()
    routes: list[BaseRoute] = []
    for path in (_BASE, f"{_BASE}/"):
        routes += _checked(create_jsonrpc_routes(handler, path, builder), _rpc_refusal)
    rest = create_rest_routes(handler, builder, path_prefix=f"{_BASE}/v1")  # it also has a mount, for tenants
    routes += _checked([each for each in rest if isinstance(each, Route)], _rest_refusal)
    cards = _Cards(context)
    routes.append(Route(f"{_BASE}{AGENT_CARD_WELL_KNOWN_PATH}", cards.answer))
    if len(context.options.agents) == 1:
        routes.append(Route(AGENT_CARD_WELL_KNOWN_PATH, cards.answer))

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        sending = asyncio.create_task(notifications.run())
        try:
            yield
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
            await handler.streaming.aclose()

    return ProtocolParts(routes=routes, open_paths=(AGENT_CARD_WELL_KNOWN_PATH,), lifespan=lifespan)


def _checked(routes: list[Route], refusal: Callable[[JSONParseError], Response]) -> list[Route]:
    """Return routes that refuse a body which is no text: a2a-sdk would answer that the server has failed."""

    def checked(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                _check_text(await request.body())
            except JSONParseError as error:
                return refusal(error)
            return await endpoint(request)

        return answer

    return [Route(each.path, checked(each.endpoint), methods=list(each.methods or ())) for each in routes]


def _check_text(body: bytes) -> None:
    """Check that a body is UTF-8, and that its JSON has no half of a surrogate pair.

    Raises:
        JSONParseError: it is not, or has.
    """
    try:
        text = body.decode()
        if _SURROGATE.search(text):
            json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeError as error:
        raise JSONParseError(
            "the request is not UTF-8, or has half of a surrogate pair: send valid text"
        ) from error
    except (ValueError, RecursionError):
        return  # it is no JSON: the protocol's own parser says what is wrong


def _rpc_refusal(error: JSONParseError) -> Response:
    return JSONResponse(build_error_response(None, jsonrpc_models.JSONParseError(message=str(error))))


def _rest_refusal(error: JSONParseError) -> Response:
    return JSONResponse(build_rest_error_payload(InvalidRequestError(str(error))), status_code=400)


class _ContextBuilder(DefaultServerCallContextBuilder):
    """Adds to the context of a call who makes it, and to which agent."""

    def build(self, request: Request) -> ServerCallContext:
        """Return the context of a call."""
        context = super().build(request)
        context.state[PRINCIPAL] = request.state.principal
        context.state[AGENT] = request.path_params["agent"]
        context.state[REQUEST] = request
        return context


class _Cards:
    """Answers requests for the public cards."""

    def __init__(self, context: EdgeContext) -> None:
        self._context = context

    async def answer(self, request: Request) -> Response:
        """Return the card of the agent that the path names, or of the only one."""
        name = request.path_params.get("agent") or self._context.options.agents[0]
        try:
            info = await asyncio.wrap_future(run_in_thread(self._context.gateway.catalogue.agent, name))
        except (UnknownAgent, InvalidMessage) as error:  # no agent has such a name
            return refused(404, str(error))
        except StoreUnavailable:
            return refused(
                503, "the registry of agents does not answer: try again in a moment", {"Retry-After": "1"}
            )
        schemes = self._context.authentication.schemes()
        card = agent_card_to_dict(agent_card(info, operations_of(info), self._context.options.public_url, schemes))
        tag = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
        headers = {"ETag": f'"{tag}"', "Cache-Control": f"public, max-age={_CARD_SECONDS}"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return JSONResponse(card, headers=headers)
