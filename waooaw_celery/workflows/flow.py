"""What a workflow's function does: each effect is a step, whose outcome is recorded and given back in a replay."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Executor
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from waooaw_celery.discovery.address import CapabilityAddress, is_capability
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.enums import MessageType, Priority
from waooaw_celery.messages.queues import HandlerName, takes_message
from waooaw_celery.messages.validation import JSON, check_agent_name, check_id, json_copy
from waooaw_celery.worker.retries.retry_policy import RetryPolicy
from waooaw_celery.workflows.engine import branches
from waooaw_celery.workflows.engine.branch import Branch, current_branch
from waooaw_celery.workflows.engine.computation import Computation
from waooaw_celery.workflows.engine.flow_control import ContinueAsNew
from waooaw_celery.workflows.engine.interface import Run
from waooaw_celery.workflows.journal.records import StepRecord
from waooaw_celery.workflows.start import checked_input
from waooaw_celery.workflows.states import StepKind, StepStatus
from waooaw_celery.workflows.steps import compensations
from waooaw_celery.workflows.steps.messages import event_call, message_call
from waooaw_celery.workflows.steps.requests import computed_id
from waooaw_celery.workflows.steps.step import ChildCall, LocalCall, RequestCall, Step, Waiting

#: One attempt, without another.
ONCE = RetryPolicy(attempts=1)
#: Seconds, or a time.
Duration = float | int | timedelta
#: When a step is tried again: a policy, or a number of further attempts.
Retry = RetryPolicy | int | None


class RaceResult(NamedTuple):
    """Which branch of a race was first, counted from 0, and its result."""

    branch: int
    result: Any


class Flow:
    """The steps of a workflow, for an ``async def``.

    The function is run again from its beginning after every crash, and after every long wait. So it must make
    the same steps each time: it reads the time with ``now()``, random numbers with ``random()``, and calls
    everything else that has an effect, or may return something else the next time, in a step.
    ``docs/workflows.md`` shows how.

    Attributes:
        workflow_id: id of the workflow.
        agent: the agent that runs it.
        deadline: when it ends at the latest; None: never.

    Example:
        >>> @agent.workflow
        ... async def onboard(flow: Flow, customer: dict) -> dict:
        ...     profile = await flow.request("crm", "create", customer)
        ...     flow.compensate("crm", "delete", {"id": profile["id"]})
        ...     await flow.sleep(timedelta(hours=2))
        ...     return {"decision": await flow.wait_for("approval", timeout=timedelta(days=3))}
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.workflow_id = run.workflow_id
        self.agent = run.claim.agent
        self.deadline = run.claim.deadline

    # --- steps

    def request(
        self,
        to_agent: str | CapabilityAddress,
        method: str | None = None,
        params: Mapping[str, JSON] | None = None,
        *,
        retry: Retry = None,
        timeout: Duration | None = None,
        priority: Priority | None = None,
        key: str | None = None,
    ) -> Step:
        """Request a method of an agent; await it for the result.

        Args:
            to_agent: the agent, or a capability such as ``capability:summarise@>=2``: an agent is chosen for each
                attempt, and recorded.
            method: name of one of its methods; None: the method that is the capability.
            params: the method's keyword arguments.
            retry: when it is requested again after an error: a policy, or a number of further attempts.
            timeout: how long an attempt may take; None: the workflow waits until it is answered.
            priority: how urgent the request is; None: as the workflow.
            key: a name of just this step; None: it is counted.

        Raises:
            RemoteError, RequestTimeout, UnknownAgent, UnknownMethod, NoAgentAvailable, InvalidArguments, Expired,
            Cancelled: when it is awaited.
            InvalidMessage: an argument is invalid.
        """
        capability = CapabilityAddress.of(to_agent) if is_capability(to_agent) else None
        if capability is not None and method is not None and HandlerName.parse(f"x.{method}") is None:
            raise InvalidMessage(f"method must be the name of a method, not {method!r:.80}")
        call = RequestCall(
            target=_method(to_agent, method) if capability is None else None,
            capability=capability,
            method=method,
            params=_params(params),
            retry=_retry(retry),
            timeout=timeout_of(timeout),
            priority=self._run.claim.priority if priority is None else Priority.of(priority),
        )
        name = f"{to_agent}.{method}" if capability is None else f"capability {capability.recorded}"
        return self._step(StepKind.REQUEST, name, key, call)

    def send(
        self,
        to_agent: str | CapabilityAddress,
        payload: JSON,
        *,
        message_type: MessageType = MessageType.COMMAND,
        priority: Priority | None = None,
        ttl_seconds: float | None = None,
        key: str | None = None,
    ) -> Step:
        """Send a message to an agent, once; await it for the message's id.

        Args:
            to_agent: the recipient, or a capability such as ``capability:summarise@>=2``.
            payload: any JSON value.
            message_type: COMMAND, QUERY or ACK.
            priority: how urgent the message is; None: as the workflow.
            ttl_seconds: seconds until it expires; None: never.
            key: a name of just this step.
        """
        if is_capability(to_agent):
            name = f"send capability {CapabilityAddress.of(to_agent).recorded}"
        else:
            name = f"send {check_agent_name(to_agent, 'to_agent')}"
        path = self._path(name, key)
        call = message_call(
            self._run,
            path,
            to_agent=to_agent,
            payload=json_copy(payload, "payload"),
            message_type=message_type,
            priority=self._run.claim.priority if priority is None else Priority.of(priority),
            ttl_seconds=ttl_seconds,
        )
        return Step(self._run, StepKind.SEND, path, call)

    def publish(self, topic: str, event: JSON = None, *, key: str | None = None, **options: Any) -> Step:
        """Publish an event, once to each subscriber; await it for the event's id.

        Args:
            topic: what happened, such as ``task.created``.
            event: the payload, any JSON value.
            key: a name of just this step.
            options: the other arguments of ``EventBus.publish``: ``subject``, ``schema_version``, …
        """
        path = self._path(f"publish {topic}", key)
        return Step(self._run, StepKind.PUBLISH, path, event_call(self._run, path, topic, event, options))

    def step(
        self,
        function: Callable[..., Any],
        *args: Any,
        retry: Retry = None,
        timeout: Duration | None = None,
        key: str | None = None,
        **kwargs: Any,
    ) -> Step:
        """Call a local function, and record what it returns; await it for the result.

        It is called once for each recorded result: if the process dies before the result is recorded, it is called
        again. A plain function runs in a thread, an ``async def`` on the event loop.

        Args:
            function: the function; its result must be a JSON value.
            args: its positional arguments.
            retry: when it is tried again after an error: a policy, or a number of further attempts.
            timeout: how long an attempt may take. A thread cannot be stopped: its result is dropped.
            key: a name of just this step.
            kwargs: its keyword arguments. If they have one of the names above, use ``functools.partial``.

        Raises:
            StepFailed: when it is awaited: the function raised. It has the name of the error's class.
            StepTimeout: when it is awaited: it took too long.
        """
        name = getattr(function, "__name__", None) or type(function).__name__
        if isinstance(function, partial):
            name = getattr(function.func, "__name__", name)
        bound = partial(function, *args, **kwargs) if args or kwargs else function
        call = LocalCall(call=bound, retry=_retry(retry), timeout=timeout_of(timeout))
        return self._step(StepKind.STEP, name, key, call)

    def sleep(self, duration: Duration | datetime, *, key: str | None = None) -> Step:
        """Wait; await it. It costs no memory while it lasts.

        Args:
            duration: how long, or until when (an aware datetime).
            key: a name of just this step.
        """
        until = duration if isinstance(duration, datetime) else self._until(duration)
        if until is None or until.tzinfo is None:
            raise InvalidMessage(f"sleep() takes seconds, a timedelta or an aware datetime, not {duration!r:.80}")
        return self._step(StepKind.SLEEP, "sleep", key, Waiting(signal=None, until=until))

    def wait_for(self, signal: str, *, timeout: Duration | None = None, key: str | None = None) -> Step:
        """Wait for a signal; await it for the signal's payload. Earlier signals of this name were kept.

        Args:
            signal: its name.
            timeout: how long to wait; None: forever.
            key: a name of just this step.

        Raises:
            SignalTimeout: when it is awaited: no signal arrived in time.
        """
        check_signal(signal)
        return self._step(
            StepKind.SIGNAL, f"signal {signal}", key, Waiting(signal=signal, until=self._until(timeout))
        )

    def child(
        self,
        name: str,
        given: Mapping[str, JSON] | None = None,
        *,
        workflow_id: str | None = None,
        priority: Priority | None = None,
        key: str | None = None,
    ) -> Step:
        """Start another workflow; await it for its result.

        Args:
            name: ``<agent>.<function>``.
            given: its input.
            workflow_id: its id; None: one that follows from this step.
            priority: how urgent it is; None: as this one.
            key: a name of just this step.

        Raises:
            WorkflowFailed: when it is awaited: the child has no result.
            UnknownAgent, UnknownMethod: when it is awaited: there is no such workflow.
            WorkflowConflict: when it is awaited: the id is that of another workflow.
        """
        call = ChildCall(
            name=name,
            input=checked_input(given),
            workflow_id=None if workflow_id is None else check_id(workflow_id, "workflow_id"),
            priority=self._run.claim.priority if priority is None else Priority.of(priority),
        )
        return self._step(StepKind.CHILD, name, key, call)

    # --- branches

    async def gather(self, *steps: Awaitable[Any], return_exceptions: bool = False) -> list[Any]:
        """Run steps, or coroutines that make steps, at the same time, and return their results in order.

        Each has a branch of its own. When one raises, the others are cancelled, and its error is raised.

        Args:
            steps: steps and coroutines.
            return_exceptions: return errors among the results, and cancel nothing.
        """
        path = self._path("gather")
        return await branches.gather(self._run, path, list(steps), return_exceptions)

    async def map(
        self, function: Callable[[Any], Awaitable[Any]], items: Iterable[Any], *, limit: int | None = None
    ) -> list[Any]:
        """Call a function that makes steps with each item, at the same time, and return the results in order.

        Args:
            function: such as ``lambda item: flow.request("ocr", "read", {"page": item})``, or an ``async def``.
            items: the items.
            limit: how many run at the same time at most; None: all.
        """
        path = self._path("map")
        return await branches.map_items(self._run, path, function, list(items), limit)

    async def race(self, *steps: Awaitable[Any]) -> RaceResult:
        """Run steps, or coroutines that make steps, at the same time; return which was first, and its result.

        The others are cancelled. If the first one raises, its error is raised.
        """
        path = self._path("race")
        return RaceResult(*await branches.race(self._run, path, list(steps)))

    # --- at once

    def now(self) -> datetime:
        """Return the time: in a replay, that of the first time."""
        path = self._path("now")
        self._run.reach(path)
        record = self._run.changes.records.get(path)
        if record is None:
            time = self._run.now()
            record = StepRecord(path=path, kind=StepKind.NOW, started_at=time)
            self._run.changes.complete(record, time)
        found: datetime = record.outcome
        return found

    def random(self) -> float:
        """Return a random number from 0 to 1: in a replay, that of the first time."""
        seed = computed_id(self.workflow_id, self._run.claim.run, self._path("random"))
        return random.Random(seed).random()  # noqa: S311 - nothing here is secret

    def uuid(self) -> UUID:
        """Return a unique UUID: in a replay, that of the first time."""
        return UUID(computed_id(self.workflow_id, self._run.claim.run, self._path("uuid")))

    def compensate(
        self,
        undo: str | Callable[..., Any],
        *args: Any,
        attempts: int = compensations.ATTEMPTS,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> None:
        """Register what undoes the last step if the workflow fails, is cancelled or times out: the last one first.

        Args:
            undo: an agent, or a function that another process finds by its name.
            args: for an agent, its method and the keyword arguments; for a function, its arguments.
            attempts: how often it is tried.
            timeout: for an agent, how long an attempt may take; None: until it is answered.
            kwargs: for a function, its keyword arguments.

        Raises:
            InvalidMessage: an argument is invalid.

        Example:
            >>> flow.compensate("crm", "delete", {"id": 7})
            >>> flow.compensate(release_room, room=3)
        """
        details: JSON
        if callable(undo):
            name = getattr(undo, "__name__", "function")
            details = compensations.function_details(undo, args, kwargs, attempts)
        else:
            if not 1 <= len(args) <= 2 or kwargs:
                raise InvalidMessage('write compensate("crm", "delete", {"id": 7}), or compensate(function, ...)')
            target = _method(undo, args[0])
            name = str(target)
            details = compensations.request_details(
                target, _params(args[1] if len(args) == 2 else None), attempts, timeout_of(timeout)
            )
        path = self._path(f"undo {name}")
        self._run.reach(path)
        if path not in self._run.changes.records:
            record = StepRecord(
                path=path,
                kind=StepKind.COMPENSATION,
                status=StepStatus.REGISTERED,
                started_at=self._run.now(),
                details=details,
            )
            self._run.changes.change(record)

    def progress(self, value: JSON) -> None:
        """Set what ``Workflows.get`` and ``waooaw workflow show`` show as progress: any JSON value."""
        self._run.changes.set(progress=json_copy(value, "progress"))

    def continue_as_new(self, given: Mapping[str, JSON] | None = None, /, **more: JSON) -> None:
        """Begin again with another input, and without the steps so far: for a workflow that goes on for long.

        The workflow keeps its id, and goes on with the newest version of its function. The compensations so far
        are dropped: the new run cannot know what they would undo.

        Args:
            given: the new input, or
            more: the same as keyword arguments.
        """
        raise ContinueAsNew(checked_input({**(given or {}), **more}))

    # --- inside

    def computation(self) -> Computation:
        """Return a context for code that takes long between two steps: the workflow is not put down meanwhile."""
        return Computation(self._run)

    @property
    def threads(self) -> Executor:
        """The threads in which plain local functions are called."""
        threads: Executor = self._run.engine.threads
        return threads

    def busy(self) -> None:
        """Note that a thread of the function runs."""
        self._run.busy += 1

    def idle(self) -> None:
        """Note that a thread of the function waits for a step, or has ended."""
        self._run.busy -= 1
        self._run.touch()

    def _path(self, name: str, key: str | None = None) -> str:
        return current_branch.get(_NO_BRANCH).next_path(name, key)

    def _step(self, kind: StepKind, name: str, key: str | None, call: Any) -> Step:
        return Step(self._run, kind, self._path(name, key), call)

    def _until(self, duration: Duration | None) -> datetime | None:
        seconds = seconds_of(duration)
        return None if seconds is None else self._run.now() + timedelta(seconds=seconds)


_NO_BRANCH = Branch("outside/")


def seconds_of(duration: Duration | None) -> float | None:
    """Return a duration in seconds; None: none.

    Raises:
        InvalidMessage: it is not a number of seconds or a timedelta from 0 to 100 years.
    """
    if duration is None:
        return None
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 3.2e9:
        raise InvalidMessage(
            f"a duration must be seconds or a timedelta, from 0 to 100 years, not {duration!r:.80}"
        )
    return float(seconds)


def timeout_of(duration: Duration | None) -> float | None:
    """Return a timeout in seconds; None: none.

    Raises:
        InvalidMessage: it is not a duration, or is 0: nothing could be done within it.
    """
    seconds = seconds_of(duration)
    if seconds == 0:
        raise InvalidMessage("a timeout must be longer than 0; leave it out to wait as long as it takes")
    return seconds


def check_signal(name: object) -> str:
    """Return the name of a signal.

    Raises:
        InvalidMessage: it is empty, longer than 200 characters, or has characters that cannot be printed.
    """
    if not isinstance(name, str) or not 0 < len(name) <= 200 or not name.isprintable():
        raise InvalidMessage(f"the name of a signal must be 1 to 200 printable characters, not {name!r:.80}")
    return name


def _retry(retry: Retry) -> RetryPolicy:
    return ONCE if retry is None else RetryPolicy.of(retry)


def _method(agent: object, method: object) -> HandlerName:
    name = check_agent_name(agent, "to_agent")
    target = HandlerName.parse(f"{name}.{method}") if isinstance(method, str) else None
    if target is None or takes_message(target.handler):
        raise InvalidMessage(f"method must be the name of a method of {agent!r}, not {method!r:.80}")
    return target


def _params(params: object) -> dict[str, JSON]:
    if params is not None and not isinstance(params, Mapping):
        raise InvalidMessage(
            f"params must be a mapping of the method's parameters to values, such as {{'name': 'Ada'}}, "
            f"not {params!r:.80}"
        )
    copy: dict[str, JSON] = json_copy(dict(params or {}), "params")
    return copy
