"""The client of an agent: sends messages, requests and events with the agent as sender."""

from __future__ import annotations

from waooaw_celery.agents.agent_verbs import AgentVerbs
from waooaw_celery.agents.aio import Agent as AsyncAgent
from waooaw_celery.agents.requests.stream import Stream
from waooaw_celery.agents.requests.verbs import blocking, direct
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
        self.verbs = AgentVerbs(name, app, Stream)
        #: The same verbs as coroutines: ``await agent.aio.request(...)``, in an ``async def`` handler.
        self.aio = AsyncAgent(name, app)

    send = direct(AgentVerbs.send)
    publish = direct(AgentVerbs.publish)
    request = blocking(AgentVerbs.request)
    request_later = direct(AgentVerbs.request_later)
    stream = direct(AgentVerbs[Stream].stream)
