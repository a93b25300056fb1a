"""The workflows that have not ended."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import func, select

from waooaw_celery.app.app import AgentApp
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.workflow_models import WorkflowRow
from waooaw_celery.maintenance.fleet import metrics
from waooaw_celery.maintenance.fleet.samples import OTHER, Samples
from waooaw_celery.workflows.states import FINAL, WorkflowStatus

#: Groups of function and status that have series of their own.
MAX_GROUPS = 200


class WorkflowReader:
    """Reads the workflows of an application's ledger.

    Args:
        app: the application, with a ledger.
    """

    def __init__(self, app: AgentApp) -> None:
        self._app = app

    def read(self) -> Samples:
        """Return how many workflows have each status that is not final, and the age of the oldest.

        The query reads the index of the status, so that workflows that have ended cost nothing.

        Raises:
            AuditUnavailable: the database does not answer.
        """
        unfinished = [status for status in WorkflowStatus if status not in FINAL]
        query = (
            select(WorkflowRow.name, WorkflowRow.status, func.count(), func.min(WorkflowRow.created_at))
            .where(WorkflowRow.status.in_([status.value for status in unfinished]))
            .group_by(WorkflowRow.name, WorkflowRow.status)
        )
        samples = Samples()
        for each in unfinished:  # an alert needs the 0 too
            samples.set(metrics.WORKFLOW_OLDEST, 0, _label(each.value))
        with self._app.database.begin("read the workflows for the metrics") as connection:
            now = now_in(connection)
            groups: Counter[tuple[str, str]] = Counter()
            for name, state, number, first in connection.execute(query):
                status = _label(state)
                groups[name, status] += number
                age = max((now - first).total_seconds(), 0.0)
                samples.highest(metrics.WORKFLOW_OLDEST, age, status)
        ordered = sorted(groups.items(), key=lambda each: (each[0][1] != "stuck", -each[1], each[0]))
        for position, ((name, status), number) in enumerate(ordered):
            samples.add(metrics.WORKFLOWS, number, name if position < MAX_GROUPS else OTHER, status)
        return samples


def _label(status: str) -> str:
    return status.replace(" ", "_")
