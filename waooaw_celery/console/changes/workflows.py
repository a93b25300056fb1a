"""Changes of workflows."""

from __future__ import annotations

from waooaw_celery.console.access.roles import Role
from waooaw_celery.console.changes.action import Action, Given
from waooaw_celery.workflows.workflows import Workflows


def _signal(given: Given) -> str:
    id_, name = given.text("workflow"), given.text("signal")
    payload = None if given.optional("payload") is None else given.json("payload")
    Workflows(given.app).signal(id_, name, payload, from_agent=given.by)
    return f"Sent the signal {name} to {id_}."


def _cancel(given: Given) -> str:
    id_ = given.text("workflow")
    Workflows(given.app).cancel(id_, compensate=given.flag("compensate"), by=given.by)
    return f"{id_} is being cancelled."


def _pause(given: Given) -> str:
    id_ = given.text("workflow")
    Workflows(given.app).pause(id_, by=given.by)
    return f"{id_} is being paused."


def _resume(given: Given) -> str:
    id_ = given.text("workflow")
    Workflows(given.app).resume(id_, by=given.by)
    return f"{id_} goes on."


def _retry(given: Given) -> str:
    found = Workflows(given.app).retry(given.text("workflow"), given.optional("from_step"))
    return f"{found.workflow_id} runs again: run {found.run}."


ACTIONS = tuple(
    Action(name=name, role=Role.OPERATOR, target=target, run=run)
    for name, target, run in (
        ("signal-workflow", ("workflow", "signal"), _signal),
        ("cancel-workflow", ("workflow",), _cancel),
        ("pause-workflow", ("workflow",), _pause),
        ("resume-workflow", ("workflow",), _resume),
        ("retry-workflow", ("workflow", "from_step"), _retry),
    )
)
