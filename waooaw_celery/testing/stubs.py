"""Agents that answer what a test says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from waooaw_celery.agents.agent import Agent
from waooaw_celery.agents.client import AgentClient
from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import UnknownMethod
from waooaw_celery.messages.enums import MessageType
from waooaw_celery.messages.queues import HandlerName, takes_message


class Stubs:
    """The stubs of one test.

    Args:
        apps: the applications; new agents are added to the first.
    """

    def __init__(self, apps: Sequence[AgentApp]) -> None:
        self._apps = apps
        self._agents: dict[str, Agent] = {}
        #: The replaced functions of real agents, by the tasks of their handlers.
        self._replaced: dict[Any, Any] = {}

    def add(self, name: str, answers: Mapping[str, Any]) -> AgentClient:
        """Add an agent that answers, or have an agent of the application answer.

        Args:
            name: its name.
            answers: by handler: a value, an exception, or a function that is called with the arguments.

        Raises:
            UnknownMethod: the agent of the application has no such handler.
        """
        app = next((each for each in self._apps if name in each.agents), self._apps[0])
        if name not in app.agents:
            self._agents[name] = Agent(name, app)
        for handler, answer in answers.items():
            task: Any = app.tasks.get(str(HandlerName(name, handler)))
            if task is not None:
                self._replaced.setdefault(task, task.run)
                task.run = _replacing(task, answer)
            elif name in self._agents:
                self._register(self._agents[name], handler, answer)
            else:
                known = ", ".join(app.agents[name]) or "none"
                raise UnknownMethod(
                    f"the agent {name!r} has no handler {handler!r} that a stub could replace; it has: {known}"
                )
        return AgentClient(name, app)

    def restore(self) -> None:
        """Give the handlers of real agents their functions again."""
        for task, run in self._replaced.items():
            task.run = run
        self._replaced.clear()

    def _register(self, agent: Agent, handler: str, answer: Any) -> None:
        if takes_message(handler):
            agent.on(MessageType(handler))(lambda message: _answer(answer, message))
        else:
            agent.method(lambda **params: _answer(answer, **params), name=handler)


def _replacing(task: Any, answer: Any) -> Callable[..., Any]:
    """Return a function that answers in place of a handler's own, and takes the same arguments."""

    @wraps(task.run)
    def run(*args: Any, **params: Any) -> Any:
        if takes_message(task.handler):
            return _answer(answer, task.message)
        return _answer(answer, *args, **params)

    return run


def _answer(answer: Any, *args: Any, **params: Any) -> Any:
    if isinstance(answer, BaseException) or (isinstance(answer, type) and issubclass(answer, BaseException)):
        raise answer
    return answer(*args, **params) if callable(answer) else answer
