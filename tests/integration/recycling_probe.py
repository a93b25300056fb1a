"""An agent whose module keeps many objects, as one that has loaded a large model or table."""

from __future__ import annotations

import os

from waooaw_celery import Agent, create_app

#: Lists, which Python's garbage collector visits.
OBJECTS = [[number] for number in range(int(os.environ.get("OBJECTS", "0")))]

app = create_app("recycling")
agent = Agent(os.environ["PROBE_NAME"], app)


@agent.method
def process() -> int:
    """Return the id of the process."""
    return os.getpid()


@agent.method
async def asynchronous() -> int:
    """Return the id of the process, from the event loop."""
    return os.getpid()
