"""The service: HTTP in front of agents. No request holds a thread while an agent works."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from waooaw_celery import AgentApp, Message, RateLimitExceeded, RemoteError, RequestTimeout, aio, create_app

#: The name under which the service sends: rate limits and the ledger know it.
SENDER = "service"
RATE_LIMIT = "20/second"


class Question(BaseModel):
    """What a caller asks."""

    question: str


class Document(BaseModel):
    """What the assistant shall learn."""

    text: str


def create_service(agents: AgentApp | None = None, timeout: float = 10.0) -> FastAPI:
    """Return the service.

    Args:
        agents: the application that sends; None: one that the lifespan opens and closes.
        timeout: how long a caller waits for an answer, or for the next part of one, in seconds.
    """

    @asynccontextmanager
    async def lifespan(service: FastAPI) -> AsyncIterator[None]:
        app = agents or create_app("service", waooaw_rate_limit=RATE_LIMIT)
        service.state.requests, service.state.bus = aio.RequestResponseHandler(app), aio.MessageBus(app)
        yield
        if agents is None:
            app.close()

    service = FastAPI(title="Agents", lifespan=lifespan)

    @service.post("/answers")
    async def ask(body: Question, request: Request) -> dict[str, Any]:
        requests = request.app.state.requests
        given = body.model_dump()
        return {"answer": await requests.request("assistant", "answer", given, timeout=timeout, from_agent=SENDER)}

    @service.get("/answers/stream")
    async def stream(question: str, request: Request) -> StreamingResponse:
        given = {"question": question}
        parts = request.app.state.requests.stream(
            "assistant", "explain", given, timeout=timeout, from_agent=SENDER
        )
        return StreamingResponse(_events(parts), media_type="text/event-stream")

    @service.post("/documents", status_code=202)
    async def learn(body: Document, request: Request) -> dict[str, str]:
        message = Message(from_agent=SENDER, to_agent="assistant", payload=body.model_dump())
        receipt = await request.app.state.bus.send(message)
        return {"receipt": receipt.message_id, "status": receipt.status.value}

    @service.get("/receipts/{message_id}")
    async def receipt(message_id: str, request: Request) -> dict[str, str]:
        try:
            found = await request.app.state.bus.receipt(message_id)
        except LookupError as error:
            raise HTTPException(404, str(error)) from error
        return {"receipt": message_id, "status": found.status.value}

    service.add_exception_handler(RequestTimeout, _timed_out)
    service.add_exception_handler(RemoteError, _failed)
    service.add_exception_handler(RateLimitExceeded, _limited)
    return service


async def _events(parts: Any) -> AsyncIterator[str]:
    """Yield the parts of an answer as server-sent events. A caller that leaves stops the assistant."""
    try:
        async with parts:
            async for part in parts:
                yield f"data: {json.dumps(part)}\n\n"
    except (RequestTimeout, RemoteError) as error:  # the headers are sent: only an event can say it
        yield f"event: error\ndata: {json.dumps(str(error))}\n\n"
    else:
        yield "event: end\ndata:\n\n"


async def _timed_out(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 504)


async def _failed(_: Request, error: Any) -> JSONResponse:
    return JSONResponse({"error": error.message, "type": error.type}, 502)


async def _limited(_: Request, error: Any) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 429, {"Retry-After": str(math.ceil(error.retry_after))})


service = create_service()
