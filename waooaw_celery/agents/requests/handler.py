"""Requests that block until their answers have arrived."""

from __future__ import annotations

from waooaw_celery.agents.requests.operations import RequestOperations
from waooaw_celery.agents.requests.stream import Stream
from waooaw_celery.agents.waiting import blocking, direct
from waooaw_celery.app.app import AgentApp


class RequestResponseHandler:
    """Requests methods of agents and waits for their results, which arrive through Celery's result backend.

    A handler may use it too: the time that its own caller has left bounds the request, and an agent that already
    waits in this chain of requests is refused. The worker process that waits handles nothing else meanwhile; an
    ``async def`` handler awaits ``waooaw_celery.agents.aio.RequestResponseHandler`` instead.

    Args:
        app: the application whose broker and result backend carry the requests.

    Example:
        >>> requests = RequestResponseHandler(create_app(waooaw_sender="caller"))
        >>> requests.request("greeter", "greet", {"name": "Ada"}, timeout=10)
        'Hello, Ada!'
    """

    def __init__(self, app: AgentApp) -> None:
        self.app = app
        self.operations = RequestOperations(app, Stream)

    request = blocking(RequestOperations.request)
    send_request = blocking(RequestOperations.send_request)
    broadcast_request = blocking(RequestOperations.broadcast_request)
    stream = direct(RequestOperations[Stream].stream)
    request_later = direct(RequestOperations.request_later)
