"""The client of an agent: sends messages, requests and events with the agent as sender."""

from __future__ import annotations

from waooaw_celery.agents.agent_operations import AgentOperations
from waooaw_celery.agents.aio import Agent as AsyncAgent
from waooaw_celery.agents.requests.stream import Stream
from waooaw_celery.agents.waiting import blocking, direct
from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.application import require_agent_app


class AgentClient:
    """Sends in an agent's name.

    Args:
        name: the agent.
        app: the application whose broker carries what it sends.
    """

    def __init__(self, name: str, app: AgentApp) -> None:
        self.name = name
        self.app = require_agent_app(app, type(self).__name__)
        self.operations = AgentOperations(name, app, Stream)
        #: The same operations as coroutines: ``await agent.aio.request(...)``, in an ``async def`` handler.
        self.aio = AsyncAgent(name, app)

    send = direct(AgentOperations.send)
    publish = direct(AgentOperations.publish)
    request = blocking(AgentOperations.request)
    request_later = direct(AgentOperations.request_later)
    stream = direct(AgentOperations[Stream].stream)
