"""An agent for tests whose handlers are methods of an object, partials, lambdas and objects.

PROBE_NAME is its name. PROBE_SETTINGS are its settings, as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.agents import Response

app = create_app("probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)


class Service:
    def __init__(self, greeting: str) -> None:
        self.greeting = greeting
        self.got: list[Any] = []

    def greet(self, name: str) -> str:
        return f"{self.greeting}, {name}!"

    async def greet_later(self, name: str) -> str:
        return self.greet(name)

    def spell(self, name: str) -> Iterator[str]:
        yield from name

    async def __call__(self, name: str) -> str:
        return self.greet(name)

    def take(self, message: Message) -> None:
        self.got.append(message.payload)

    async def take_later(self, task: Any, message: Message) -> None:
        self.got.append([task.name, message.payload])

    def came(self, response: Response) -> None:
        self.got.append(response.result)

    def seen(self) -> list[Any]:
        return self.got


def greet_with(greeting: str, name: str) -> str:
    return f"{greeting}, {name}!"


async def greet_later_with(greeting: str, name: str) -> str:
    return f"{greeting}, {name}!"


def with_task(task: Any, name: str) -> str:
    return f"{task.name.partition('.')[2]}, {name}!"


service = Service("Hello")
agent.method(service.greet)
agent.method(service.greet, name="hail")
agent.method(service.greet_later, retries=1)
agent.method(service.spell, name="letters")
agent.method(service, name="object")
agent.method(partial(greet_with, "Hello"), name="partial")
agent.method(partial(greet_later_with, "Hello"), name="partial_later")
agent.method(lambda name: f"Hello, {name}!", name="short")
agent.method(lambda name: (yield f"Hello, {name}!"), name="short_stream")
agent.method(partial(with_task), name="Hello", bind=True)
agent.method(service.seen)
agent.on(MessageType.COMMAND)(service.take)
agent.on(MessageType.QUERY, bind=True)(service.take_later)
agent.subscribe(f"{agent.name}.*", name="events")(partial(service.take))
agent.reply(service.came, name="answer")


@agent.method(name="ask")
def _ask(name: str) -> None:
    agent.request_later(agent.name, "hail", {"name": name}, on_reply="answer")
