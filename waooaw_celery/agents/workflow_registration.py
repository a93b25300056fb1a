"""Registers an agent's workflows, and the handlers through which they are started, answered and told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from waooaw_celery.agents.events.bus import EventBus
from waooaw_celery.agents.registration import reply_task
from waooaw_celery.agents.requests.response import Response
from waooaw_celery.app.app import AgentApp
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.workflows.definition import WorkflowDefinition, add_definition
from waooaw_celery.workflows.receiving import RETRIES, start_task, take_answer, take_input
from waooaw_celery.workflows.start import ANSWER_HANDLER, INPUT_HANDLER
from waooaw_celery.workflows.worker_step import add_to_worker


class _Agent(Protocol):
    """What is needed of an Agent."""

    name: str
    app: AgentApp

    def register(self, handler: str, *task: Any) -> Any:
        """Register a handler of any kind."""


def register_workflow(agent: _Agent, function: Callable[..., Any], name: str, version: int) -> Callable[..., Any]:
    """Register a workflow; see ``Agent.workflow``."""
    app, target = agent.app, HandlerName(agent.name, name)
    definition = WorkflowDefinition(target, function, version, EventBus(app).publish)
    if str(target) not in app.workflows:
        options: dict[str, Any] = {"retries": RETRIES}
        agent.register(name, function, start_task(target), options, {"bind": True})
    add_definition(app.workflows, definition)
    if version == max(app.workflows[str(target)]):
        app.declarations[agent.name].add_workflow(name, function)
    if ANSWER_HANDLER not in app.agents[agent.name]:
        _register_handlers(agent)
    return function


def _register_handlers(agent: _Agent) -> None:
    options: dict[str, Any] = {"retries": RETRIES}
    fixed = {"bind": True, "ignore_result": True}
    agent.register(ANSWER_HANDLER, _take_answer, reply_task(_take_answer, bind=True), options, fixed)
    agent.register(INPUT_HANDLER, take_input, take_input, options, fixed)
    add_to_worker(agent.app)


def _take_answer(task: Any, response: Response) -> None:
    workflow_id = task.message.correlation_id
    take_answer(task.app, workflow_id, response.message_id, response.result, response.error)
