"""The demo's workflow, whose process is killed in the middle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from waooaw_celery.agents.requests.handler import RequestResponseHandler
from waooaw_celery.demo.processes import Stack
from waooaw_celery.errors import WorkflowFailed
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.workflows.workflows import Workflows

ORCHESTRATOR, ANALYSTS = "orchestrator", ["analyst-1", "analyst-2"]
#: Documents of a report, and recorded steps after which the process is killed.
DOCUMENTS, STEPS = 40, 10
#: Seconds after which the scenario counts as stuck.
STUCK_SECONDS = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowKilled:
    """What happened to a workflow whose process was killed, and to one that a person refused.

    Attributes:
        workflow_id: id of the workflow that was published.
        recorded: how many of its steps had an outcome when its process was killed.
        documents: how many documents it was given.
        asked: how many messages asked an analyst for the words of one, counted by the ledger.
        result: its result.
        refused: why the other one was undone.
        filed: the reports that were filed in the end.
    """

    workflow_id: str
    recorded: int
    documents: int
    asked: int
    result: dict[str, Any]
    refused: str
    filed: list[str]


def kill_workflow(stack: Stack) -> WorkflowKilled:
    """Start two reports, kill the process that runs them, and approve one of them and refuse the other."""
    workflows = Workflows(stack.app)
    texts = {f"page-{number:02}.txt": f"Number {number}. " * 500 for number in range(DOCUMENTS)}
    published, refused = (
        workflows.start(
            f"{ORCHESTRATOR}.report", {"title": title, "documents": texts, "analysts": ANALYSTS}
        ).workflow_id
        for title in ("A report", "Another report")
    )

    def recorded() -> int:
        return sum(step.ended_at is not None for step in workflows.steps(published))

    stack.wait_until(lambda: recorded() >= STEPS, "the first steps of a workflow", STUCK_SECONDS)
    stack.kill(ORCHESTRATOR)
    before = recorded()
    workflows.signal(published, "review", {"approved": True, "by": "Ada"})
    workflows.signal(refused, "review", {"approved": False, "by": "Ada"})
    result = workflows.result(published, STUCK_SECONDS)
    try:
        workflows.result(refused, STUCK_SECONDS)
        reason = ""
    except WorkflowFailed as error:
        reason = f"{error.status}: {error.message}"
    trail = MessageAuditTrail(stack.app.ledger)
    return WorkflowKilled(
        workflow_id=published,
        recorded=before,
        documents=DOCUMENTS,
        asked=sum(record.receipt.handler == "words" for record in trail.conversation(published)),
        result=result,
        refused=reason,
        filed=RequestResponseHandler(stack.app).request("archivist", "filed"),
    )
