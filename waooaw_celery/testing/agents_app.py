"""The test harness: agents in one process and without servers, a clock that the test moves, and assertions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from waooaw_celery.agents.agent import Agent
from waooaw_celery.agents.bus import MessageBus
from waooaw_celery.agents.client import AgentClient
from waooaw_celery.agents.events.bus import EventBus
from waooaw_celery.agents.requests.handler import RequestResponseHandler
from waooaw_celery.app.app import AgentApp, create_app
from waooaw_celery.discovery.loads import waiting_counts
from waooaw_celery.errors import ConfigurationError, UnknownAgent
from waooaw_celery.limits.configured import configured_limiter
from waooaw_celery.limits.memory import MemoryStorage
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.messages.validation import JSON
from waooaw_celery.testing.aio import AsyncHarness
from waooaw_celery.testing.assertions import Recorded
from waooaw_celery.testing.clock import Clock
from waooaw_celery.testing.configuration import connected, reachable
from waooaw_celery.testing.failures import Failures
from waooaw_celery.testing.memory.broker import MemoryBroker
from waooaw_celery.testing.memory.directory import FreshDirectory, FreshRegistry
from waooaw_celery.testing.memory.ledger import ledger_folder
from waooaw_celery.testing.memory.results import MemoryCollector, MemoryResults
from waooaw_celery.testing.simulation.declaration import declare
from waooaw_celery.testing.simulation.simulation import Simulation
from waooaw_celery.testing.simulation.worker import InProcessWorker, Threads
from waooaw_celery.testing.stubs import Stubs


@contextmanager
def harness(*apps: AgentApp) -> Iterator[Harness]:
    """Run the agents of applications in this process, with broker, results and ledger in memory.

    Messages wait in their queues until ``run`` is called, or until somebody waits for an answer. In the block,
    the applications are connected to nothing else, whatever their configuration and the environment say. At the
    end, they are as they were before.

    Args:
        apps: the applications of the agents, such as those of your modules; none: a new one. They share the broker
            and the ledger. The harness itself sends with the first.

    Yields:
        The harness.

    Raises:
        ConfigurationError: the extra ``testing`` is not installed, or an application is given twice.

    Example:
        >>> with harness(greeter.app, planner.app) as agents_app:
        ...     assert agents_app.request("greeter", "greet", {"name": "Ada"}) == "Hello, Ada!"
    """
    apps = apps or (create_app("waooaw_celery.testing"),)
    if len({id(app) for app in apps}) < len(apps):
        raise ConfigurationError("an application was given to the harness twice: give each one once")
    results, failures, threads, broker = MemoryResults(), Failures(), Threads(), MemoryBroker(time.time)
    broker.on_publish, broker.on_acknowledge = failures.at_publish, failures.at_acknowledge
    with ExitStack() as stack:
        folder = stack.enter_context(ledger_folder())
        url = stack.enter_context(reachable(broker))
        for app in apps:
            stack.enter_context(connected(app, url, results, folder))
        workers = [
            InProcessWorker(app, broker, results, failures, threads, number) for number, app in enumerate(apps, 1)
        ]
        simulation = results.worker = Simulation(broker, workers, threads)
        simulation.clock.start()
        stack.callback(simulation.clock.stop)
        agents_app = Harness(apps, simulation, workers, failures)
        stack.callback(agents_app.stubs.restore)
        simulation.renew = agents_app.renew
        for worker in workers:
            _replace_components(worker.app, results, simulation, agents_app.renew)
            worker.open()
            stack.callback(worker.close)
        stack.callback(simulation.close)
        agents_app.renew()
        yield agents_app


def _replace_components(
    app: AgentApp, results: MemoryResults, simulation: Simulation, renew: Callable[[], None]
) -> None:
    """Have an application count, wait and look for agents in this process only."""
    components = app.components
    components.result_collector = MemoryCollector(app, results, simulation)  # type: ignore[assignment]
    components.sleep = simulation.sleep
    components.registry = FreshRegistry(components.registry, renew)  # type: ignore[assignment]
    components.directory = FreshDirectory(components.open_registry, partial(waiting_counts, app), renew)
    components.limiter = configured_limiter(
        components.settings,
        restrictions=lambda: components.restrictions,
        storage=MemoryStorage(lambda: time.time_ns() // 1000),
    )


class Harness:
    """The agents of a test. ``harness`` makes it.

    Attributes:
        app: the first application: give it to ``MessageBus``, ``Workflows`` and the other classes of the package.
        clock: the clock: ``agents_app.clock.advance(days=3)``.
        bus: the message bus of the application.
        aio: the operations that take time, as coroutines, for an ``async def`` test.
    """

    def __init__(
        self,
        apps: Sequence[AgentApp],
        simulation: Simulation,
        workers: Sequence[InProcessWorker],
        failures: Failures,
    ) -> None:
        self.app = apps[0]
        self.bus = MessageBus(self.app)
        self.aio = AsyncHarness(self)
        self.stubs = Stubs(apps)
        self._apps, self._simulation, self._workers, self._failures = apps, simulation, workers, failures
        self._recorded = Recorded(self.app, self.run)
        self._declared: dict[str, Any] = {}

    @property
    def clock(self) -> Clock:
        """The clock of the test."""
        return self._simulation.clock

    # --- agents

    def agent(self, name: str, **options: Any) -> Agent:
        """Return a new agent of the application. It is forgotten at the end of the test.

        Args:
            name: its name.
            options: the other arguments of ``Agent``.

        Example:
            >>> crm = agents_app.agent("crm")
            >>> @crm.method
            ... def create(name: str) -> int:
            ...     return 7
        """
        return Agent(name, self.app, **options)

    def stub(self, name: str, **answers: Any) -> AgentClient:
        """Return an agent that answers what the test says, in place of the real one or of one that is not here.

        Args:
            name: its name.
            answers: by handler: what a method returns, an exception that it raises, or a function that is called
                with the arguments. ``command``, ``query``, ``ack`` and ``response`` are handlers of messages.

        Example:
            >>> agents_app.stub("crm", create={"id": 7}, delete=PermissionError("not you"))
        """
        return self.stubs.add(name, answers)

    def renew(self) -> None:
        """Declare the agents, handlers and subscriptions that were added. Whoever looks for an agent does it."""
        for worker in self._workers:
            app = worker.app
            sizes = tuple(
                (name, len(handlers), app.capabilities.get(name)) for name, handlers in app.agents.items()
            )
            declared = (*sizes, len(app.subscribed), len(app.workflows), len(app.tasks))
            if declared != self._declared.get(worker.hostname):
                self._declared[worker.hostname] = declared
                worker.renew()
                declare(app, worker.hostname)

    @contextmanager
    def stopped(self, *agents: str) -> Iterator[None]:
        """Stop the workers of agents in this block: their messages wait, and may expire.

        Args:
            agents: the agents; none: all of them.

        Raises:
            UnknownAgent: the application has no such agent.

        Example:
            >>> with agents_app.stopped("crm"):
            ...     receipt = agents_app.send("crm", {"id": 7}, ttl_seconds=60)
            ...     agents_app.clock.advance(minutes=2)
        """
        self.renew()
        known = [name for app in self._apps for name in app.agents]
        for name in agents:
            if name not in known:
                raise UnknownAgent(f"there is no agent {name!r} here to be stopped: {', '.join(known) or 'none'}")
        before = [set(worker.stopped) for worker in self._workers]
        for worker in self._workers:
            worker.stopped |= set(agents or known)
        try:
            yield
        finally:
            for worker, stopped in zip(self._workers, before, strict=True):
                worker.stopped = stopped

    # --- what a test does

    def send(
        self, to: str, payload: JSON = None, *, from_agent: str | None = None, **fields: Any
    ) -> DeliveryReceipt:
        """Send a message; ``run`` handles it.

        Args:
            to: the recipient, or a capability such as ``capability:ocr``.
            payload: any JSON value.
            from_agent: the sender; None: the setting ``waooaw_sender``, or ``test`` if there is none.
            fields: other fields of Message, such as ``priority`` and ``ttl_seconds``.

        Returns:
            The receipt. Read the later status with ``receipt``.
        """
        return self.bus.send_to(from_agent or self._sender, to, payload, **fields)

    def request(self, to: str, method: str, params: Mapping[str, JSON] | None = None, **options: Any) -> JSON:
        """Ask an agent, and return its answer; see ``RequestResponseHandler.request``."""
        return RequestResponseHandler(self.app).request(to, method, params, **options)

    def publish(self, topic: str, payload: JSON = None, *, from_agent: str | None = None, **options: Any) -> Any:
        """Publish an event; ``run`` handles it. See ``EventBus.publish``."""
        self.renew()
        return EventBus(self.app).publish(topic, payload, from_agent=from_agent or self._sender, **options)

    def run(self) -> None:
        """Handle all messages, and let all workflows go on, until only time can change something.

        Raises:
            NotSettled: the agents do not come to rest.
        """
        self._simulation.run()

    def receipt(self, message: DeliveryReceipt | Message | str) -> DeliveryReceipt:
        """Return the receipt of a message, with its present status."""
        return self.bus.receipt(message if isinstance(message, str) else message.message_id)

    def result(self, workflow_id: str, timeout: float = 30.0) -> JSON:
        """Return the result of a workflow. Time passes as far as the workflow needs it, up to the timeout.

        Args:
            workflow_id: the workflow.
            timeout: seconds to wait, by the clock of the test.

        Raises:
            RequestTimeout: it has not ended in time; the text says what it waits for.
            WorkflowFailed: it has no result.
        """
        from waooaw_celery.workflows.workflows import Workflows, result_of, still_runs

        self.run()  # the message that starts it may still wait
        workflows = Workflows(self.app)
        self._simulation.handle_until(lambda: workflows.get(workflow_id).status.final, timeout)
        found = workflows.get(workflow_id)
        if not found.status.final:
            raise still_runs(found, timeout)
        return result_of(found)

    # --- failures on purpose

    def fail_next(self, target: str, error: BaseException | None = None, times: int = 1) -> None:
        """Have the next calls of a handler raise an error.

        Args:
            target: an agent, or a handler such as ``crm.create``.
            error: what is raised; None: a ConnectionError.
            times: how often.
        """
        self._failures.fail_next(target, error or ConnectionError("a failure that the test has ordered"), times)

    def drop_answer(self, target: str, times: int = 1) -> None:
        """Have the next answers of an agent get lost: its handler runs, and the caller waits in vain."""
        self._failures.drop_answer(target, times)

    def duplicate(self, target: str, times: int = 1) -> None:
        """Have the broker deliver the next messages to an agent twice."""
        self._failures.duplicate(target, times)

    def delay(self, target: str, seconds: float, times: int = 1) -> None:
        """Have the broker hold back the next messages to an agent, for a number of seconds."""
        self._failures.delay(target, seconds, times)

    def kill_between(self, first: str, second: str, target: str, times: int = 1) -> None:
        """Have the process be killed between two moments in the life of the next message to an agent.

        Args:
            first, second: ``"record", "publish"``: the sender is killed, and gets Killed; ``"deliver", "handle"``;
                ``"handle", "record"``: the handler has run, and nobody knows; ``"commit", "record"``: the same,
                after the commit of a handler with ``once=True``; ``"record", "acknowledge"``: the outcome is
                recorded. In all but the first, the broker delivers the message again.
            target: an agent, or a handler such as ``crm.create``.
            times: how often.

        Raises:
            ConfigurationError: there are no such moments.
        """
        self._failures.kill_between(first, second, target, times)

    # --- what has happened

    def sent(self, **wanted: Any) -> Sequence[Any]:
        """Return the records of the messages that were sent, oldest first; see ``assert_sent``."""
        return self._recorded.sent(**wanted)

    def handled(self, **wanted: Any) -> Sequence[Any]:
        """Return the records of the messages that were handled; see ``assert_sent``."""
        return self._recorded.handled(**wanted)

    def published(self, topic: str | None = None, **wanted: Any) -> Sequence[Any]:
        """Return the records of the events that were published; see ``assert_published``."""
        return self._recorded.published(topic, **wanted)

    def assert_sent(self, **wanted: Any) -> Any:
        """Assert that a message was sent, and return its record; see ``Recorded.assert_sent``."""
        return self._recorded.assert_sent(**wanted)

    def assert_handled(self, **wanted: Any) -> Any:
        """Run the agents, and assert that a message was handled; see ``Recorded.assert_handled``."""
        return self._recorded.assert_handled(**wanted)

    def assert_published(self, topic: str, **wanted: Any) -> Any:
        """Assert that an event was published, and return its record; see ``Recorded.assert_published``."""
        return self._recorded.assert_published(topic, **wanted)

    @property
    def _sender(self) -> str:
        return self.app.settings.sender or "test"
