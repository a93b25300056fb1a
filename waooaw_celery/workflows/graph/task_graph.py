"""Tasks of several agents with dependencies: a workflow that is described, not written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from waooaw_celery.errors import ConfigurationError, InvalidMessage
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.json_form import JsonForm
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.messages.validation import JSON, check_agent_name, json_copy
from waooaw_celery.worker.retries.retry_policy import RetryPolicy
from waooaw_celery.workflows.graph.mermaid import graph_to_mermaid
from waooaw_celery.workflows.graph.references import references

#: The longest name of a task.
_LONGEST = 100


class TaskPriority(StrEnum):
    """How urgent a task is. The messages of the last two are both LOW."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
    BACKGROUND = "background"

    @property
    def of_message(self) -> Priority:
        """The priority of the task's request."""
        return _PRIORITIES[self]


_PRIORITIES = {
    TaskPriority.CRITICAL: Priority.URGENT,
    TaskPriority.HIGH: Priority.HIGH,
    TaskPriority.NORMAL: Priority.NORMAL,
    TaskPriority.LOW: Priority.LOW,
    TaskPriority.BACKGROUND: Priority.LOW,
}


class OnFailure(StrEnum):
    """What a graph does when a task fails."""

    STOP = "stop"  #: the workflow fails, and what was done is undone
    CONTINUE = "continue"  #: it goes on with the tasks that do not depend on the failed one


@dataclass(frozen=True, slots=True, kw_only=True)
class Compensation(JsonForm):
    """What undoes a task.

    Attributes:
        agent: an agent.
        method: one of its methods.
        params: the method's keyword arguments; they may refer to the task's own result.
    """

    agent: str
    method: str
    params: dict[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTask(JsonForm):
    """A task of a graph: a request to an agent.

    Attributes:
        name: its name, unique in the graph.
        agent: the agent.
        method: one of the agent's methods.
        payload: the method's keyword arguments; they may have references made with ``result_of``.
        depends_on: the tasks that come before it.
        priority: how urgent it is.
        retry: when it is tried again after an error: the numbers of a ``RetryPolicy``.
        timeout: seconds that an attempt may take; None: no limit.
        compensation: what undoes it, or None.
        when: a condition on the results of earlier tasks, such as ``{"fetch.pages": {"gte": 1}}`` (see
            ``Filter``); if it does not hold, the task is skipped, with all that depend on it. None: it always
            runs.
    """

    name: str
    agent: str
    method: str
    payload: dict[str, JSON] = field(default_factory=dict)
    depends_on: tuple[str, ...] = ()
    priority: TaskPriority = TaskPriority.NORMAL
    retry: dict[str, JSON] = field(default_factory=lambda: _retry(0))
    timeout: float | None = None
    compensation: Compensation | None = None
    when: dict[str, JSON] | None = None


@dataclass(slots=True)
class TaskGraph(JsonForm):
    """Tasks of several agents with dependencies.

    Attributes:
        name: its name.
        tasks: the tasks, in the order in which they were added.
        on_failure: what happens when a task fails.

    Example:
        >>> graph = TaskGraph("report")
        >>> graph.add_task("fetch", "crawler", "fetch", {"url": "https://example.org"})
        >>> graph.add_task("sum_up", "writer", "sum_up", {"text": result_of("fetch")}, depends_on=["fetch"])
        >>> graph.batches()
        [['fetch'], ['sum_up']]
        >>> orchestrator.workflow(run_task_graph)
        >>> Workflows(app).start("orchestrator.run_task_graph", {"graph": graph.to_dict()})
    """

    name: str = "tasks"
    tasks: list[GraphTask] = field(default_factory=list)
    on_failure: OnFailure = OnFailure.STOP

    def __post_init__(self) -> None:
        try:
            self.on_failure = OnFailure(self.on_failure)
        except ValueError:
            raise InvalidMessage(
                f"on_failure must be one of {', '.join(OnFailure)}, not {self.on_failure!r:.80}"
            ) from None

    def add_task(
        self,
        name: str,
        agent: str,
        method: str,
        payload: Mapping[str, JSON] | None = None,
        *,
        depends_on: Iterable[str] = (),
        priority: TaskPriority | str = TaskPriority.NORMAL,
        retry: RetryPolicy | int = 0,
        timeout: float | None = None,
        compensation: tuple[str, str] | tuple[str, str, Mapping[str, JSON]] | None = None,
        when: Mapping[str, JSON] | None = None,
    ) -> GraphTask:
        """Add a task; the arguments are the attributes of ``GraphTask``.

        ``retry`` is a policy, or a number of further attempts. A graph is data: the policy names no errors.

        Raises:
            InvalidMessage: an argument is invalid, or there is a task of this name.
        """
        is_valid = isinstance(name, str) and 0 < len(name) <= _LONGEST and name.isprintable()
        if not is_valid or set(name) & set("#/[]."):
            raise InvalidMessage(
                f"the name of a task must be 1 to {_LONGEST} printable characters without #, /, [, ] and ., "
                f"not {name!r:.80}"
            )
        if any(task.name == name for task in self.tasks):
            raise InvalidMessage(f"the graph has a task {name!r} already: choose another name")
        if isinstance(depends_on, str):
            raise InvalidMessage(f"depends_on must be a list of names, such as [{depends_on!r}]")
        task = GraphTask(
            name=name,
            agent=agent,
            method=method,
            payload=json_copy(dict(payload or {}), "payload"),
            depends_on=tuple(dict.fromkeys(depends_on)),
            priority=_priority(priority),
            retry=_retry(retry),
            timeout=timeout,
            compensation=None if compensation is None else _compensation(compensation),
            when=None if when is None else json_copy(dict(when), "when"),
        )
        _check(task)
        self.tasks.append(task)
        return task

    def task(self, name: str) -> GraphTask:
        """Return a task.

        Raises:
            InvalidMessage: there is no task of this name.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise InvalidMessage(f"the graph has no task {name!r}")

    def validate(self, app: Any = None) -> None:
        """Check that the graph can be run.

        Args:
            app: an AgentApp: also check that its agents and methods are known. None: only the graph is checked.

        Raises:
            InvalidMessage: a task is invalid, depends on one that is missing, or refers to the result of one that
                it does not depend on, in its payload or its condition; or there is a cycle, which the error names.
            UnknownAgent, UnknownMethod: an agent or a method is not known.
        """
        names = {task.name for task in self.tasks}
        if len(names) < len(self.tasks):
            raise InvalidMessage("two tasks of the graph have the same name")
        for task in self.tasks:
            _check(task)
            for before in task.depends_on:
                if before not in names:
                    raise InvalidMessage(
                        f"task {task.name!r} depends on {before!r}, which the graph does not have"
                    )
        self._in_order()
        self._check_references()
        if app is not None:
            for task in self.tasks:
                app.registry.check_handler(HandlerName(task.agent, task.method))
                if task.compensation is not None:
                    app.registry.check_handler(HandlerName(task.compensation.agent, task.compensation.method))

    def topological_order(self) -> list[str]:
        """Return the names of the tasks, each after all that it depends on.

        Raises:
            InvalidMessage: there is a cycle.
        """
        return [name for batch in self.batches() for name in batch]

    def batches(self) -> list[list[str]]:
        """Return the tasks that can run at the same time, batch after batch.

        Raises:
            InvalidMessage: there is a cycle.
        """
        level: dict[str, int] = {}
        found: dict[int, list[str]] = {}
        for task in self._in_order():
            level[task.name] = 1 + max((level[before] for before in task.depends_on), default=-1)
        for task in self.tasks:
            found.setdefault(level[task.name], []).append(task.name)
        return [found[number] for number in sorted(found)]

    def critical_path(self, seconds: Mapping[str, float] | None = None) -> list[str]:
        """Return the tasks that decide how long the graph takes: the longest way through it.

        Args:
            seconds: how long each task takes; a task that is left out, and every task without this, counts as 1.

        Raises:
            InvalidMessage: there is a cycle.
        """
        length: dict[str, float] = {}
        last: dict[str, str | None] = {}
        for task in self._in_order():
            before = max(task.depends_on, key=lambda name: length[name], default=None)
            last[task.name] = before
            length[task.name] = (0.0 if before is None else length[before]) + (seconds or {}).get(task.name, 1.0)
        path: list[str] = []
        name = max(length, key=lambda name: length[name], default=None)
        while name is not None:
            path.append(name)
            name = last[name]
        return path[::-1]

    def to_mermaid(self) -> str:
        """Return the graph as a Mermaid flowchart."""
        tasks = {task.name: task.depends_on for task in self.tasks}
        labels = {task.name: f"{task.name}: {task.agent}.{task.method}" for task in self.tasks}
        return graph_to_mermaid(tasks, labels)

    def ancestors(self, name: str) -> set[str]:
        """Return all tasks that come before a task."""
        found: set[str] = set()
        waiting = list(self.task(name).depends_on)
        tasks = {task.name: task for task in self.tasks}
        while waiting:
            before = waiting.pop()
            if before not in found:
                found.add(before)
                waiting += (tasks.get(before) or self.task(before)).depends_on
        return found

    def _in_order(self) -> list[GraphTask]:
        """Return the tasks, each after all that it depends on.

        Raises:
            InvalidMessage: there is a cycle.
        """
        tasks = {task.name: task for task in self.tasks}
        found: dict[str, GraphTask] = {}
        for task in self.tasks:
            # A loop, because a chain of tasks may be longer than Python's stack.
            trail: dict[str, Iterator[str]] = {} if task.name in found else {task.name: iter(task.depends_on)}
            while trail:
                name, rest = next(reversed(trail.items()))
                before = next((each for each in rest if each not in found), None)
                if before is None:
                    found[name] = tasks[name]
                    del trail[name]
                elif before in trail:
                    names = list(trail)
                    cycle = [*names[names.index(before) :], before]
                    raise InvalidMessage(f"the tasks depend on each other in a cycle: {' -> '.join(cycle)}")
                else:
                    trail[before] = iter((tasks.get(before) or self.task(before)).depends_on)
        return list(found.values())

    def _check_references(self) -> None:
        for task in self.tasks:
            if not (task.when or task.compensation or any(references(task.payload))):
                continue
            known = self.ancestors(task.name)
            for name in references(task.payload):
                if name not in known:
                    raise InvalidMessage(
                        f"task {task.name!r} uses the result of {name!r}, and does not depend on it: add it to "
                        "depends_on"
                    )
            for path in task.when or {}:
                if path.partition(".")[0] not in known:
                    raise InvalidMessage(
                        f"the condition of task {task.name!r} is about {path!r}, and it does not depend on that "
                        "task: add it to depends_on"
                    )
            own = [] if task.compensation is None else list(references(task.compensation.params))
            for name in own:
                if name not in known | {task.name}:
                    raise InvalidMessage(f"the compensation of {task.name!r} uses the result of {name!r}")


def _check(task: GraphTask) -> None:
    check_agent_name(task.agent, f"the agent of task {task.name!r}")
    if HandlerName.parse(f"{task.agent}.{task.method}") is None:
        raise InvalidMessage(f"task {task.name!r} has no valid method: {task.method!r:.80}")
    try:
        RetryPolicy(**task.retry)
    except (TypeError, ConfigurationError) as error:
        raise InvalidMessage(f"retry of task {task.name!r} is no retry policy: {error}") from None
    seconds = task.timeout
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (is_number and 0 < seconds < 3.2e9):
        raise InvalidMessage(f"timeout of task {task.name!r} must be a number of seconds, not {seconds!r:.80}")
    if task.when is not None:
        Filter.of(task.when)


def _retry(value: RetryPolicy | int) -> dict[str, JSON]:
    """Return the numbers of a retry policy."""
    try:
        policy = RetryPolicy.of(value)
    except ConfigurationError as error:
        raise InvalidMessage(f"retry of a task: {error}") from None
    if policy.on != (Exception,) or policy.never:
        raise InvalidMessage("the retry policy of a task cannot name errors (on=, never=): a graph is data")
    fields: dict[str, JSON] = asdict(policy)
    return {name: number for name, number in fields.items() if name not in ("on", "never")}


def _priority(value: TaskPriority | str) -> TaskPriority:
    try:
        return TaskPriority(value.lower())
    except (ValueError, AttributeError):
        raise InvalidMessage(f"priority must be one of {', '.join(TaskPriority)}, not {value!r:.80}") from None


def _compensation(value: Any) -> Compensation:
    if not isinstance(value, tuple) or not 2 <= len(value) <= 3:
        raise InvalidMessage(f'a compensation is ("agent", "method", {{...}}), not {value!r:.80}')
    params = json_copy(dict(value[2]), "params") if len(value) == 3 else {}
    return Compensation(agent=value[0], method=value[1], params=params)
