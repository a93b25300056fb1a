"""What each kind of step does: when it begins, when it goes on in another process, and what ends it."""

from __future__ import annotations

from waooaw_celery.errors import SignalTimeout
from waooaw_celery.workflows.engine.interface import Run
from waooaw_celery.workflows.errors_form import error_from_json, error_to_json
from waooaw_celery.workflows.journal.records import InputKind, StepRecord, WorkflowInput
from waooaw_celery.workflows.states import StepKind
from waooaw_celery.workflows.steps import children, local, requests
from waooaw_celery.workflows.steps.outcomes import retry_or_fail
from waooaw_celery.workflows.steps.step import (
    ChildCall,
    LocalCall,
    RequestCall,
    Step,
    Waiting,
)

#: Rounds of the event loop in which the function makes the next step after an answer: both are written together.
TAKING_ROUNDS = 6


def begin(run: Run, step: Step) -> None:
    """Begin a step that the journal does not have."""
    record = run.new_record(step)
    call = step.call
    if isinstance(call, LocalCall):
        local.attempt(run, record, call)
    elif isinstance(call, RequestCall):
        requests.attempt(run, record, call)
    elif isinstance(call, ChildCall):
        children.begin(run, record, call)
    elif isinstance(call, Waiting):
        _wait(run, record, call)


def go_on(run: Run, record: StepRecord) -> None:
    """Go on with a step that another process has begun, or this one before it was put down."""
    call = run.calls[record.path]
    if isinstance(call, LocalCall):
        if record.due_at is None:
            local.attempt(run, record, call)
    elif isinstance(call, RequestCall):
        requests.go_on(run, record, call)
    elif isinstance(call, Waiting) and _end_with_kept_signal(run, record):
        return
    # A child's row exists, and its agent looks for it.
    run.engine.arm(run)


def fire_due(run: Run) -> bool:
    """End the waits whose time is over, and begin the attempts that are due; return whether there were any."""
    now = run.now()
    due = [record for record in run.changes.due.values() if record.due_at is not None and record.due_at <= now]
    for record in due:
        record.due_at = None
        call = run.calls.get(record.path)
        if record.kind is StepKind.SLEEP:
            run.changes.complete(record, None, run.then_resolve(record))
        elif record.kind is StepKind.SIGNAL:
            error = SignalTimeout(f"no signal {record.details!r} arrived in time")
            run.changes.fail(record, error_to_json(error), run.then_resolve(record))
        elif isinstance(call, LocalCall):
            local.attempt(run, record, call)
        elif isinstance(call, RequestCall):
            requests.fire(run, record, call)
        else:  # nobody waits for it any more, such as a branch that was cancelled
            run.changes.change(record)
    run.engine.arm(run)
    return bool(due)


def _wait(run: Run, record: StepRecord, call: Waiting) -> None:
    record.due_at = call.until
    if call.signal is not None:
        record.details = call.signal
    if _end_with_kept_signal(run, record):
        return
    run.changes.change(record)
    run.engine.arm(run)


def take_signal(run: Run, given: WorkflowInput) -> None:
    """Give a signal to the step that waits for it longest; without one, keep it until a step waits."""
    waiting = [
        record
        for record in run.changes.open.values()
        if record.kind is StepKind.SIGNAL and record.details == given.key and record.path in run.calls
    ]
    if waiting:
        _end_with_signal(run, min(waiting, key=lambda record: record.number), given)
    else:
        run.signals.append(given)


def _end_with_kept_signal(run: Run, record: StepRecord) -> bool:
    """Give a step a signal that has arrived before, if it waits for one that has; return whether it did."""
    given = next((each for each in run.signals if each.key == record.details), None)
    if record.kind is not StepKind.SIGNAL or given is None:
        return False
    run.signals.remove(given)
    _end_with_signal(run, record, given)
    return True


def _end_with_signal(run: Run, record: StepRecord, given: WorkflowInput) -> None:
    run.changes.take(given)
    run.changes.complete(record, given.payload, run.then_resolve(record))


def take_answer(run: Run, given: WorkflowInput) -> None:
    """Give an answer, or the end of a child, to its step; a late one is dropped."""
    record = run.changes.by_request.pop(given.key, None)
    if record is None or record.ended or record.request_id != given.key or run.is_dropped(record.path):
        return
    error = given.payload.get("error")
    if error is None:
        # The answer is recorded as an input: the function may see it before the step is written.
        run.changes.complete(record, given.payload.get("result"), rounds=TAKING_ROUNDS)
        run.resolve(record)
        return
    call = run.calls.get(record.path)
    if isinstance(call, RequestCall) and given.kind is InputKind.ANSWER:
        retry_or_fail(run, record, call, error_from_json(error, record.path))
    else:
        run.changes.fail(record, error, run.then_resolve(record))
