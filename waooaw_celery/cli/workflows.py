"""`workflow`: start workflows, see what they do and wait for, and steer them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import click

from waooaw_celery.cli.group import OPERATOR, by_option, current_app, requester
from waooaw_celery.cli.ledger.times import TimeParam
from waooaw_celery.cli.messages import JsonParam
from waooaw_celery.cli.output import ago, echo, json_option, print_json, table_options
from waooaw_celery.cli.output.table import show_facts, show_table
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.validation import JSON
from waooaw_celery.workflows.flow import seconds_of
from waooaw_celery.workflows.graph.mermaid import steps_to_mermaid
from waooaw_celery.workflows.info import WorkflowInfo, WorkflowStep
from waooaw_celery.workflows.states import StepKind, StepStatus, WorkflowStatus
from waooaw_celery.workflows.workflows import Workflows

_id = click.argument("workflow_id", metavar="ID")
_from = click.option(
    "--from", "from_agent", metavar="AGENT", help="The sender.  [default: waooaw_sender, or operator]"
)


@click.group()
def workflow() -> None:
    """Start workflows, see what they do, and steer them. Needs a ledger."""


def _workflows(ctx: click.Context) -> Workflows:
    return Workflows(current_app(ctx))


def _sender(workflows: Workflows, from_agent: str | None) -> str:
    return from_agent or workflows.app.settings.sender or OPERATOR


@workflow.command()
@click.argument("name", metavar="AGENT.FUNCTION")
@click.argument("given", metavar="INPUT", type=JsonParam(), default="{}")
@click.option("--id", "workflow_id", help="Its id. Starting it again with the same id changes nothing.")
@click.option(
    "--priority",
    type=click.Choice([priority.name.lower() for priority in Priority], case_sensitive=False),
    default="normal",
    show_default=True,
)
@click.option("--deadline", type=float, help="Seconds after which it ends at the latest.")
@click.option("--version", type=int, help="Version of the function.  [default: the newest]")
@click.option("--wait", type=float, metavar="SECONDS", help="Wait for its end, and print its result.")
@_from
@json_option
@click.pass_context
def start(
    ctx: click.Context,
    name: str,
    given: JSON,
    workflow_id: str | None,
    priority: str,
    deadline: float | None,
    version: int | None,
    wait: float | None,
    from_agent: str | None,
    as_json: bool,
) -> None:
    """Start a workflow with INPUT, a JSON object of its function's parameters, and print its id."""
    workflows = _workflows(ctx)
    found = workflows.start(
        name,
        given,
        workflow_id=workflow_id,
        priority=Priority.of(priority),
        deadline=None if deadline is None else timedelta(seconds=seconds_of(deadline) or 0.0),
        version=version,
        from_agent=_sender(workflows, from_agent),
    )
    if wait is not None:
        print_json(workflows.result(found.workflow_id, wait))
    elif as_json:
        print_json(found)
    else:
        echo(found.workflow_id)


@workflow.command("list")
@click.option("--name", metavar="AGENT.FUNCTION", help="Only workflows of this function.")
@click.option("--status", help=f"Only those in this state: {', '.join(WorkflowStatus)}.")
@click.option("--agent", help="Only those of this agent.")
@click.option("--since", type=TimeParam(), help="Started at this time or later.")
@click.option("--text", help="Only those with this text in their input.")
@click.option("--page", help="The next page, as the last one gave it.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@table_options
@click.pass_context
def list_workflows(
    ctx: click.Context,
    name: str | None,
    status: str | None,
    agent: str | None,
    since: datetime | None,
    text: str | None,
    page: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List workflows, the newest first."""
    found = _workflows(ctx).list(
        name=name, status=status, agent=agent, since=since, text=text, page=page, limit=limit
    )
    if as_json:
        print_json(found)
        return
    rows = [
        (each.workflow_id, _function(each), each.status.value, ago(each.created_at), each.steps, _note(each))
        for each in found.workflows
    ]
    show_table(
        f"Workflows ({len(rows)})",
        ("id", "function", "status", "started", "steps", "waits for, or its error"),
        rows,
    )
    if found.next_page is not None:
        echo(f"More: --page '{found.next_page}'")


@workflow.command()
@_id
@click.option("--mermaid", is_flag=True, help="Print the steps as a Mermaid diagram.")
@table_options
@click.pass_context
def show(ctx: click.Context, workflow_id: str, mermaid: bool, as_json: bool) -> None:
    """Show a workflow: its steps by their paths, with their times, and what it waits for.

    The steps of a branch stand together, and what was undone stands last. Other commands take a step's path.
    """
    workflows = _workflows(ctx)
    found, steps = workflows.get(workflow_id), workflows.steps(workflow_id)
    if mermaid:
        for line in steps_to_mermaid(found, steps).split("\n"):
            echo(line)
        return
    if as_json:
        print_json({"workflow": found.to_dict(), "steps": [step.to_dict() for step in steps]})
        return
    show_facts(f"Workflow {found.workflow_id}", _facts(found))
    rows = [(step.path, step.kind, _step_status(step, found), *_times(step, found)) for step in _in_order(steps)]
    show_table(f"Steps ({len(rows)})", ("step", "kind", "status", "started", "seconds", "note"), rows)


@workflow.command()
@_id
@click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds to wait for its end.")
@click.pass_context
def result(ctx: click.Context, workflow_id: str, timeout: float) -> None:
    """Wait for the end of a workflow, and print its result as JSON."""
    print_json(_workflows(ctx).result(workflow_id, timeout))


@workflow.command()
@_id
@click.argument("name")
@click.argument("payload", type=JsonParam(), default="null")
@_from
@click.pass_context
def signal(ctx: click.Context, workflow_id: str, name: str, payload: JSON, from_agent: str | None) -> None:
    """Send the signal NAME with PAYLOAD, a JSON value, to a workflow. It is kept until it is waited for."""
    workflows = _workflows(ctx)
    workflows.signal(workflow_id, name, payload, from_agent=_sender(workflows, from_agent))
    echo(f"Sent {name} to {workflow_id}.")


@workflow.command()
@_id
@click.option("--no-compensation", is_flag=True, help="Do not undo what it has done.")
@by_option
@click.pass_context
def cancel(ctx: click.Context, workflow_id: str, no_compensation: bool, by: str | None) -> None:
    """Cancel a workflow, and undo what it has done, the last step first."""
    workflows = _workflows(ctx)
    workflows.cancel(workflow_id, compensate=not no_compensation, by=requester(workflows.app, by))
    echo(f"{workflow_id} is being cancelled.")


@workflow.command()
@_id
@by_option
@click.pass_context
def pause(ctx: click.Context, workflow_id: str, by: str | None) -> None:
    """Pause a workflow: running steps end, no other begins, and what arrives for it waits."""
    workflows = _workflows(ctx)
    workflows.pause(workflow_id, by=requester(workflows.app, by))
    echo(f"{workflow_id} is being paused.")


@workflow.command()
@_id
@by_option
@click.pass_context
def resume(ctx: click.Context, workflow_id: str, by: str | None) -> None:
    """Let a workflow go on that is paused or stuck."""
    workflows = _workflows(ctx)
    workflows.resume(workflow_id, by=requester(workflows.app, by))
    echo(f"{workflow_id} goes on.")


@workflow.command()
@_id
@click.option(
    "--from-step",
    metavar="PATH",
    help="The first step to run again, as `show` prints it.  [default: the one that failed]",
)
@click.pass_context
def retry(ctx: click.Context, workflow_id: str, from_step: str | None) -> None:
    """Run a workflow again that failed, was cancelled or timed out. Earlier steps keep their outcomes."""
    found = _workflows(ctx).retry(workflow_id, from_step)
    echo(f"{workflow_id} runs again: run {found.run}.")


@workflow.command()
@_id
@click.option(
    "--from-step", metavar="PATH", help="The first step to run anew, as `show` prints it.  [default: the first]"
)
@click.option("--id", "new_id", help="Id of the new workflow.")
@click.option("--version", type=int, help="Version of the function.  [default: the newest]")
@click.pass_context
def fork(
    ctx: click.Context, workflow_id: str, from_step: str | None, new_id: str | None, version: int | None
) -> None:
    """Start another workflow with the input and the first steps of one, and print its id."""
    found = _workflows(ctx).fork(workflow_id, from_step, new_workflow_id=new_id, version=version)
    echo(found.workflow_id)


@workflow.command()
@click.option("--name", metavar="AGENT.FUNCTION", help="Only workflows of this function.")
@click.option("--since", type=TimeParam(), help="Started at this time or later.")
@table_options
@click.pass_context
def stats(ctx: click.Context, name: str | None, since: datetime | None, as_json: bool) -> None:
    """Count workflows by status and by function."""
    found = _workflows(ctx).statistics(name, since)
    if as_json:
        print_json(found)
        return
    rate = "none has ended" if found.failure_rate is None else f"{found.failure_rate:.1%}"
    facts = [*found.by_status.items(), ("failure rate", rate)]
    if found.oldest_waiting_at is not None:
        facts.append(("oldest open one", ago(found.oldest_waiting_at)))
    show_facts(f"Workflows ({found.total})", facts)
    show_table("By function", ("function", "workflows"), list(found.by_name.items()))


def _note(found: WorkflowInfo) -> str | None:
    if found.status in (WorkflowStatus.STUCK, WorkflowStatus.FAILED) and found.error:
        return f"{found.error.get('type')}: {found.error.get('message')}"
    return found.waits_for


def _function(found: WorkflowInfo) -> str:
    return found.name if found.version is None else f"{found.name}, version {found.version}"


def _facts(found: WorkflowInfo) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [
        ("function", _function(found)),
        ("status", found.status.value),
        ("waits for", found.waits_for),
        ("progress", found.progress),
        ("input", found.input),
        ("result", found.result),
        ("error", found.error and f"{found.error.get('type')}: {found.error.get('message')}"),
        ("started", f"{found.created_at:%Y-%m-%d %H:%M:%S} UTC, {ago(found.created_at)}"),
        ("ended", found.ended_at and f"{found.ended_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("deadline", found.deadline and f"{found.deadline:%Y-%m-%d %H:%M:%S} UTC"),
        ("run", found.run if found.run > 1 else None),
        ("parent", found.parent_id),
        ("forked from", found.forked_from),
        ("conversation", found.conversation_id),
    ]
    return [(name, value) for name, value in facts if value is not None]


def _in_order(steps: Sequence[WorkflowStep]) -> list[WorkflowStep]:
    """Return steps in the order in which they began, those of a branch together, and the compensations last."""
    undone = [step for step in steps if step.kind is StepKind.COMPENSATION and step.ended_at is not None]
    first: dict[str, int] = {}
    for number, step in enumerate(steps):
        parts = step.path.split("/")
        for depth in range(1, len(parts)):
            first.setdefault("/".join(parts[:depth]), number)
    numbers = {step.path: number for number, step in enumerate(steps)}

    def place(step: WorkflowStep) -> tuple[int, ...]:
        parts = step.path.split("/")
        branches = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        return (*(first[branch] for branch in branches), numbers[step.path])

    forward = sorted((step for step in steps if step not in undone), key=place)
    return forward + sorted(undone, key=lambda step: str(step.ended_at))


def _step_status(step: WorkflowStep, found: WorkflowInfo) -> str:
    if step.status is StepStatus.STARTED and found.status.final:
        return "not ended"
    return f"{step.status.value}, attempt {step.attempts}" if step.attempts > 1 else step.status.value


def _times(step: WorkflowStep, found: WorkflowInfo) -> tuple[object, ...]:
    if step.kind is StepKind.COMPENSATION:  # it began when it was registered, and was carried out much later
        seconds = None
    else:
        end = step.ended_at or (datetime.now(UTC) if step.status is StepStatus.STARTED else None)
        is_over = found.status.final and step.ended_at is None
        seconds = None if end is None or is_over else f"{(end - step.started_at).total_seconds():.3f}"
    note = None
    if step.error:
        note = f"{step.error.get('type')}: {step.error.get('message')}"
    elif step.kind is StepKind.COMPENSATION and step.ended_at is not None:
        note = f"undone at {step.ended_at:%H:%M:%S}"
    elif step.due_at is not None:
        note = f"until {step.due_at:%Y-%m-%d %H:%M:%S} UTC"
    return f"{step.started_at:%H:%M:%S}", seconds, note
