"""What follows an attempt of a step that failed: another attempt, or the failure of the step."""

from __future__ import annotations

from datetime import timedelta

from waooaw_celery.workflows.engine.interface import Run
from waooaw_celery.workflows.errors_form import error_to_json
from waooaw_celery.workflows.journal.records import StepRecord
from waooaw_celery.workflows.steps.step import LocalCall, RequestCall


def retry_or_fail(run: Run, record: StepRecord, call: LocalCall | RequestCall, error: Exception) -> None:
    """Note when the next attempt of a step is due, or that the step has failed.

    Args:
        run: the workflow.
        record: the step.
        call: what it does.
        error: the error of the attempt.
    """
    seconds = (run.now() - record.started_at).total_seconds()
    if not call.retry.may_retry(record.attempts, error, seconds):
        run.changes.fail(record, error_to_json(error), run.then_resolve(record))
        return
    record.error, record.request_id = error_to_json(error), None
    record.due_at = run.now() + timedelta(seconds=call.retry.delay(record.attempts - 1))
    run.changes.change(record)
    run.engine.arm(run)
