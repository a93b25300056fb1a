"""What an agent's worker does with the messages of workflows: starts, answers, and signals and commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.validation import JSON
from waooaw_celery.worker.retries.retry_policy import RetryPolicy
from waooaw_celery.workflows.definition import WorkflowDefinition
from waooaw_celery.workflows.engine.engine import engine_of
from waooaw_celery.workflows.errors_form import error_to_json
from waooaw_celery.workflows.journal.rows import create
from waooaw_celery.workflows.start import new_row

#: How the handlers are tried again while the database does not answer: nothing that arrives may be lost.
RETRIES = RetryPolicy(attempts=1000, first_delay=0.5, longest_delay=10.0, on=(StoreUnavailable,))


def start_task(target: HandlerName) -> Callable[..., Any]:
    """Return the function that Celery runs for the message that starts a workflow.

    ``Workflows.start`` has created the workflow. One that another program requests is created here.
    """

    def run(task: Any, /, **given: JSON) -> JSON:
        app, message = task.app, task.message
        definition: WorkflowDefinition = newest(app, target)
        row = new_row(
            app,
            target,
            given,
            workflow_id=message.message_id,
            priority=message.priority,
            conversation_id=message.conversation_id,
            trace=message.trace,
            retention=message.retention,
        )
        with app.database.begin(f"create workflow {message.message_id}") as connection:
            if create(connection, [row]):
                definition.check_input(given)
        engine_of(app).wake(message.message_id)
        return {"workflow_id": message.message_id}

    return run


def newest(app: Any, target: HandlerName) -> WorkflowDefinition:
    """Return the newest version of a workflow's function."""
    versions = app.workflows[str(target)]
    found: WorkflowDefinition = versions[max(versions)]
    return found


def take_answer(app: Any, workflow_id: str, request_id: str, result: JSON, error: Exception | None) -> None:
    """Record the answer to a request of a workflow, and let the workflow go on."""
    payload = {"result": result} if error is None else {"error": error_to_json(error)}
    engine_of(app).take_answer(workflow_id, request_id, payload)


def take_input(task: Any, /, workflow_id: str, **_: JSON) -> None:
    """Let a workflow take a signal or a command, which is recorded already."""
    engine_of(task.app).wake(workflow_id)
