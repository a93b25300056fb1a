"""Starts workflows, waits for them, and manages them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy.orm import Session

from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.publishing.already_sent import is_sent
from waooaw_celery.broker.application import require_agent_app
from waooaw_celery.errors import (
    BlockingCall,
    ConfigurationError,
    InvalidMessage,
    RequestTimeout,
    UnknownSender,
    WorkflowConflict,
    WorkflowEnded,
    WorkflowFailed,
)
from waooaw_celery.ledger.database.clock import now_within
from waooaw_celery.ledger.database.engine import database_errors_as
from waooaw_celery.messages.enums import Priority, RetentionPolicy
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.validation import JSON, check_id, check_searchable, json_copy, new_id
from waooaw_celery.worker.execution.event_loop import is_on_event_loop
from waooaw_celery.workflows import queries
from waooaw_celery.workflows.flow import check_signal, seconds_of
from waooaw_celery.workflows.info import WorkflowInfo, WorkflowPage, WorkflowStatistics, WorkflowStep
from waooaw_celery.workflows.journal import repeats
from waooaw_celery.workflows.journal.records import InputKind
from waooaw_celery.workflows.journal.rows import add_input, create
from waooaw_celery.workflows.start import INPUT_HANDLER, input_message, new_row, parse_name, start_message
from waooaw_celery.workflows.states import WorkflowStatus

#: The sender of what a person does who is no agent.
OPERATOR = "operator"
#: Seconds between two looks for the result of a workflow, at least and at most.
SHORTEST_LOOK, LONGEST_LOOK = 0.002, 0.2


class Workflows:
    """Starts workflows, waits for their results, and manages them.

    Every method raises StoreUnavailable if the ledger's database does not answer.

    Args:
        app: the application, with a ledger.

    Raises:
        ConfigurationError: it has no ledger.

    Example:
        >>> workflows = Workflows(create_app(waooaw_sender="web"))
        >>> workflow = workflows.start("sales.onboard", {"customer": {"name": "Ada"}}, workflow_id="onboard-7")
        >>> workflows.signal("onboard-7", "approval", "yes")
        >>> workflows.result("onboard-7", timeout=60)
        {'decision': 'yes'}
    """

    def __init__(self, app: AgentApp) -> None:
        self.app = require_agent_app(app, "Workflows")
        if not app.components.has_ledger:
            raise ConfigurationError(
                "workflows need the ledger: set waooaw_database_url (or WAOOAW_DATABASE_URL), such as "
                "sqlite:////path or postgresql://user@host/name"
            )

    def start(
        self,
        name: str,
        given: Mapping[str, JSON] | None = None,
        *,
        workflow_id: str | None = None,
        priority: Priority = Priority.NORMAL,
        deadline: datetime | timedelta | None = None,
        from_agent: str | None = None,
        retention: RetentionPolicy | None = None,
        version: int | None = None,
        conversation_id: str | None = None,
        identity: str | None = None,
    ) -> WorkflowInfo:
        """Start a workflow. Starting it again with the same id and input changes nothing.

        It is started once this method has returned, also if the broker is down: its agent finds it.

        Args:
            name: ``<agent>.<function>``.
            given: its input: a mapping of the function's parameters to JSON values.
            workflow_id: its id; None: a new one.
            priority: how urgent it is.
            deadline: when it ends at the latest, an aware datetime, or how long it may take.
            from_agent: who starts it; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            retention: how long the ledger keeps it after its end; None: the setting ``waooaw_retention``.
            version: the version of the function; None: the newest that its worker has.
            conversation_id: the conversation to which it belongs; None: it begins one.
            identity: who the sender is, for the ledger; None: the setting ``waooaw_sender_identity``.

        Returns:
            The workflow, as it was when it was created, or as it is if it was started before.

        Raises:
            WorkflowConflict: a workflow with this id has another function or input.
            UnknownAgent, UnknownMethod: no agent has such a workflow.
            RateLimitExceeded, SenderPaused: the sender may not send now; nothing was started.
            InvalidMessage: an argument is invalid.
        """
        target = parse_name(name)
        _check_version(version)
        id_ = new_id() if workflow_id is None else check_id(workflow_id, "workflow_id")
        row = new_row(
            self.app,
            target,
            given or {},
            workflow_id=id_,
            priority=Priority.of(priority),
            deadline=self._deadline(deadline),
            retention=retention,
            version=version,
            conversation_id=None if conversation_id is None else check_id(conversation_id, "conversation_id"),
        )
        known = None if workflow_id is None else self._known(id_)
        if known is None:
            self.app.registry.check_handler(target)
            sender = from_agent or self.app.message_factory.sender_of(target)
            if self._create(target, row, sender, identity):
                return queries.created(row)
            known = self._known(id_)
        if known is None or known.name != str(target) or not self._has_input(id_, row["input_digest"]):
            raise WorkflowConflict(
                f"workflow {id_} exists already, with another function or another input: choose another id"
            )
        return known

    def result(self, workflow_id: str, timeout: float = 30.0) -> JSON:
        """Wait for the end of a workflow, and return its result.

        Args:
            workflow_id: the workflow.
            timeout: seconds to wait.

        Raises:
            WorkflowFailed: it failed, or was compensated, cancelled or timed out.
            RequestTimeout: it has not ended in time; it goes on.
            UnknownWorkflow: there is no such workflow.
            InvalidMessage: the timeout is no number of seconds.
            BlockingCall: a coroutine calls this; await ``waooaw_celery.aio.Workflows`` instead.
        """
        if is_on_event_loop():
            raise BlockingCall(
                "waiting for a workflow would block all coroutines of this process: in an async def handler, "
                "await waooaw_celery.aio.Workflows(app).result(...)"
            )
        left = seconds_of(timeout) or 0.0
        deadline = time.monotonic() + left
        waited = 0.0
        while True:
            if self.status(workflow_id).final:
                return result_of(self.get(workflow_id))
            left = min(left, deadline - time.monotonic())
            if left <= 0:
                raise still_runs(self.get(workflow_id), timeout)
            pause = min(pause_before_look(waited), left)
            self.app.components.sleep(pause)
            left -= pause  # a test's clock may pass faster than the real one
            waited += pause

    def get(self, workflow_id: str) -> WorkflowInfo:
        """Return a workflow.

        Raises:
            UnknownWorkflow: there is no such workflow.
            InvalidMessage: this is not a valid id.
        """
        check_id(workflow_id, "workflow_id")
        with self.app.database.begin(f"read workflow {workflow_id}") as connection:
            return queries.read_workflow(connection, workflow_id)

    def status(self, workflow_id: str) -> WorkflowStatus:
        """Return the status of a workflow. This costs less than ``get``.

        Raises:
            UnknownWorkflow: there is no such workflow.
            InvalidMessage: this is not a valid id.

        Example:
            >>> workflows.status(order_id).final
            True
        """
        check_id(workflow_id, "workflow_id")
        with self.app.database.begin(f"read workflow {workflow_id}") as connection:
            return queries.read_status(connection, workflow_id)

    def list(
        self,
        *,
        name: str | None = None,
        status: WorkflowStatus | str | None = None,
        agent: str | None = None,
        parent_id: str | None = None,
        since: datetime | None = None,
        text: str | None = None,
        page: str | None = None,
        limit: int = 50,
    ) -> WorkflowPage:
        """Return workflows, the newest first.

        Args:
            name: only those of this function.
            status: only those in this state.
            agent: only those of this agent.
            parent_id: only the children of this workflow.
            since: only those that were started since then.
            text: only those with this text in their input.
            page: the ``next_page`` of an earlier answer.
            limit: how many at most, from 1 to 1000.
        """
        if type(limit) is not int or not 1 <= limit <= 1000:
            raise InvalidMessage(f"limit must be a whole number from 1 to 1000, not {limit!r:.80}")
        given = {"name": name, "agent": agent, "parent_id": parent_id, "text": text, "page": page}
        for argument, wanted in given.items():
            if wanted is not None:
                check_searchable(wanted, argument)
        with self.app.database.begin("list workflows") as connection:
            return queries.read_page(
                connection,
                name=name,
                status=None if status is None else _status(status),
                agent=agent,
                parent_id=parent_id,
                since=since,
                text=text,
                page=page,
                limit=limit,
            )

    def steps(self, workflow_id: str, run: int | None = None) -> Sequence[WorkflowStep]:
        """Return the recorded steps of a workflow, in the order in which they began.

        Args:
            workflow_id: the workflow.
            run: which of its runs; None: the current one.

        Raises:
            UnknownWorkflow: there is no such workflow.
            InvalidMessage: this is not a valid id.
        """
        check_id(workflow_id, "workflow_id")
        with self.app.database.begin(f"read the steps of {workflow_id}") as connection:
            found = queries.read_workflow(connection, workflow_id)
            return queries.read_steps(connection, workflow_id, found.run if run is None else run)

    def statistics(self, name: str | None = None, since: datetime | None = None) -> WorkflowStatistics:
        """Return how many workflows there are, by status and by function.

        Args:
            name: only those of this function.
            since: only those that were started since then.
        """
        with self.app.database.begin("count workflows") as connection:
            return queries.read_statistics(connection, name, since)

    def signal(
        self,
        workflow_id: str,
        signal: str,
        payload: JSON = None,
        *,
        from_agent: str | None = None,
        signal_id: str | None = None,
    ) -> None:
        """Send a signal to a workflow. It is kept until the workflow waits for it.

        Args:
            workflow_id: the workflow.
            signal: name of the signal.
            payload: what ``flow.wait_for`` returns, any JSON value.
            from_agent: who sends it; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            signal_id: unique id; sending it again changes nothing. None: a new one.

        Raises:
            UnknownWorkflow: there is no such workflow.
            WorkflowEnded: it has ended.
            InvalidMessage: an argument is invalid.
        """
        self._send_input(
            workflow_id,
            InputKind.SIGNAL,
            check_signal(signal),
            json_copy(payload, "payload"),
            from_agent,
            str(uuid4()) if signal_id is None else check_id(signal_id, "signal_id"),
        )

    def cancel(self, workflow_id: str, *, compensate: bool = True, by: str | None = None) -> None:
        """Cancel a workflow: its function is stopped, and what it has done is undone.

        Args:
            workflow_id: the workflow.
            compensate: whether its compensations are carried out.
            by: who cancels it, for the record; None: the agent whose handler runs, or the setting
                ``waooaw_sender``.

        Raises:
            UnknownWorkflow, WorkflowEnded: as ``signal``.
        """
        self._send_input(workflow_id, InputKind.CANCEL, "", {"compensate": bool(compensate)}, by=by)

    def pause(self, workflow_id: str, *, by: str | None = None) -> None:
        """Pause a workflow: running steps end, and no other begins. What arrives for it waits.

        Raises:
            UnknownWorkflow, WorkflowEnded: as ``signal``.
        """
        self._send_input(workflow_id, InputKind.PAUSE, "", {}, by=by)

    def resume(self, workflow_id: str, *, by: str | None = None) -> None:
        """Let a workflow go on that was paused, or that was stuck and can go on now.

        Raises:
            UnknownWorkflow, WorkflowEnded: as ``signal``.
        """
        self._send_input(workflow_id, InputKind.RESUME, "", {}, by=by)

    def retry(self, workflow_id: str, from_step: str | None = None) -> WorkflowInfo:
        """Run a workflow again that has failed, was cancelled or timed out: as a new run with the same id.

        The steps that come before are kept with their outcomes.

        Args:
            workflow_id: the workflow.
            from_step: path of the first step that is run again; None: the first that failed.

        Raises:
            UnknownWorkflow: there is no such workflow.
            InvalidMessage: it has not ended, has a result, was compensated, or has no such step.
        """
        with self.app.database.begin(f"retry workflow {workflow_id}") as connection:
            repeats.retry(connection, now_within(self.app.database), workflow_id, from_step)
        return self.get(workflow_id)

    def fork(
        self,
        workflow_id: str,
        from_step: str | None = None,
        *,
        new_workflow_id: str | None = None,
        version: int | None = None,
    ) -> WorkflowInfo:
        """Start another workflow with the input and the first steps of one, such as under a new version.

        Args:
            workflow_id: the workflow to copy; it may still run.
            from_step: path of the first step that is run anew; None: only the input is copied.
            new_workflow_id: id of the new one; None: a new id.
            version: version of the function; None: the newest.

        Raises:
            UnknownWorkflow: there is no such workflow.
            WorkflowConflict: the new id is taken.
            InvalidMessage: it has no such step, or what it did before that step was undone.
        """
        _check_version(version)
        id_ = new_id() if new_workflow_id is None else check_id(new_workflow_id, "new_workflow_id")
        with self.app.database.begin(f"fork workflow {workflow_id}") as connection:
            repeats.fork(connection, self.app.reference_clock.now(), workflow_id, from_step, id_, version)
        return self.get(id_)

    # --- inside

    def _known(self, workflow_id: str) -> WorkflowInfo | None:
        found = self.app.database
        with found.begin(f"look for workflow {workflow_id}") as connection:
            try:
                return queries.read_workflow(connection, workflow_id)
            except LookupError:
                return None

    def _has_input(self, workflow_id: str, input_digest: str) -> bool:
        with self.app.database.begin(f"look for the input of workflow {workflow_id}") as connection:
            return queries.has_input(connection, workflow_id, input_digest)

    def _create(
        self, target: HandlerName, row: Mapping[str, Any], sender: str, identity: str | None = None
    ) -> bool:
        """Create a workflow and its message in one transaction; False: there is one with this id."""
        message = start_message(self.app, target, row, sender, identity)
        database = self.app.database
        with database_errors_as("start a workflow"), Session(database.engine) as session, session.begin():
            if not create(session.connection(), [row]):
                return False
            self.app.publisher.publish([(target, message)], session=session)
        return True

    def _send_input(
        self,
        workflow_id: str,
        kind: InputKind,
        key: str,
        payload: JSON,
        from_agent: str | None = None,
        input_id: str | None = None,
        by: str | None = None,
    ) -> None:
        """Record an input and its message in one transaction."""
        found = self.get(workflow_id)
        if found.status.final:
            raise WorkflowEnded(f"workflow {workflow_id} has ended: it is {found.status.value}")
        id_ = input_id or str(uuid4())
        if input_id is not None and is_sent(self.app.receipts, id_):
            return
        target = HandlerName(found.agent, INPUT_HANDLER)
        sender = from_agent or self._sender(target, by)
        if kind is not InputKind.SIGNAL:
            payload = {**payload, "by": by or sender}
        content = {"kind": kind.value, "name": key, "payload": payload}
        batch = [
            input_message(
                self.app, found.agent, workflow_id, found.conversation_id, content, from_agent=sender, id_=id_
            )
        ]
        database = self.app.database
        with database_errors_as("tell a workflow"), Session(database.engine) as session, session.begin():
            connection = session.connection()
            added = add_input(connection, now_within(database), workflow_id, kind, key, payload, id_)
            if added is None:
                raise WorkflowEnded(f"workflow {workflow_id} has just ended")
            if added:
                self.app.publisher.publish(batch, session=session)

    def _sender(self, target: HandlerName, by: str | None) -> str:
        """Return the sender of a command; a person who gives a name needs no agent."""
        try:
            return self.app.message_factory.sender_of(target)
        except UnknownSender:
            if by is None:
                raise
            return OPERATOR

    def _deadline(self, deadline: datetime | timedelta | None) -> datetime | None:
        if isinstance(deadline, timedelta):
            seconds_of(deadline)
            deadline = self.app.reference_clock.now() + deadline
        if deadline is not None and (not isinstance(deadline, datetime) or deadline.tzinfo is None):
            raise InvalidMessage(f"deadline must be an aware datetime or a timedelta, not {deadline!r:.80}")
        return deadline


def pause_before_look(waited: float) -> float:
    """Return the seconds until the next look for something that is waited for: an eighth of the wait so far.

    So a short wait is hardly longer than what it waits for, and a long one costs the database few looks.

    Args:
        waited: seconds that the caller has waited.
    """
    return min(max(waited / 8, SHORTEST_LOOK), LONGEST_LOOK)


def still_runs(found: WorkflowInfo, timeout: float) -> RequestTimeout:
    """Return the error of a workflow that has not ended in time."""
    waits_for = f" for {found.waits_for}" if found.waits_for else ""
    return RequestTimeout(
        f"workflow {found.workflow_id} has not ended within {timeout:g} s: it is {found.status.value}{waits_for}"
    )


def result_of(found: WorkflowInfo) -> JSON:
    """Return the result of a workflow that has ended.

    Raises:
        WorkflowFailed: it has none.
    """
    if found.status is WorkflowStatus.COMPLETED:
        return found.result
    error = found.error or {}
    raise WorkflowFailed(
        found.workflow_id, found.status.value, str(error.get("type", "Error")), str(error.get("message", ""))
    )


def _check_version(version: object) -> None:
    if version is not None and (type(version) is not int or not 1 <= version < 2**31):
        raise InvalidMessage(f"version must be a whole number from 1, not {version!r:.80}")


def _status(status: WorkflowStatus | str) -> WorkflowStatus:
    try:
        return WorkflowStatus(status.lower().replace("_", " "))
    except (ValueError, AttributeError):
        names = ", ".join(each.name for each in WorkflowStatus)
        raise InvalidMessage(f"status must be one of {names}, not {status!r:.80}") from None
