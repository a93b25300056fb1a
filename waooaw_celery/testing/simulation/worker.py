"""A worker in this process: it takes messages, one at a time of each agent, and handles them where it is called.

Messages go the whole way that they go in a ``celery worker``: through the package's consumer, Celery's request,
its trace and the signals that record what happens. Only the bootsteps, their threads and the pool's processes are
missing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from types import SimpleNamespace
from typing import Any

from celery import current_app
from celery.concurrency.solo import TaskPool
from celery.exceptions import TaskRevokedError
from celery.worker import state
from celery.worker.pidbox import Pidbox
from kombu.common import QoS
from kombu.serialization import prepare_accept_content

from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.queues import AGENT_QUEUES, agent_queue, system_queue
from waooaw_celery.testing.failures import Failures, Killed
from waooaw_celery.testing.memory.broker import MemoryBroker
from waooaw_celery.testing.memory.results import MemoryResults
from waooaw_celery.testing.memory.timers import Timers
from waooaw_celery.testing.simulation.key_order import KeyOrder
from waooaw_celery.worker.consumer import AgentConsumer
from waooaw_celery.worker.execution.pools import safe_pool
from waooaw_celery.worker.remote_control import read_cancellations

logger = get_logger(__name__)


class Threads:
    """The threads that handle messages: whether they work, or wait for an answer."""

    def __init__(self) -> None:
        self._works: dict[int, bool] = {}

    def others_work(self) -> bool:
        """Return whether another thread handles a message, and does not itself wait for an answer."""
        here = threading.get_ident()
        return any(works for thread, works in tuple(self._works.items()) if thread != here)

    @contextmanager
    def noted(self, *, works: bool) -> Iterator[None]:
        """Note that this thread works, or waits for an answer, in this block."""
        here = threading.get_ident()
        before = self._works.get(here)
        self._works[here] = works
        try:
            yield
        finally:
            if before is None:
                del self._works[here]
            else:
                self._works[here] = before


class InProcessWorker:
    """Handles the messages of an application's agents in the threads that call it.

    Of each agent one message is handled at a time, as by a worker with one process. While a handler waits for
    another agent, the messages of that agent are handled.

    Args:
        app: the application, an AgentApp.
        broker: its broker.
        results: its results.
        failures: the failures that the test has ordered.
        threads: the threads that handle messages, of all workers of the test.
        number: the number of this worker in the test.

    Attributes:
        hostname: its node name.
        stopped: the agents whose worker does not run: their messages wait.
        timers: what is to be done later.
    """

    def __init__(
        self,
        app: Any,
        broker: MemoryBroker,
        results: MemoryResults,
        failures: Failures,
        threads: Threads,
        number: int = 1,
    ) -> None:
        self.app, self._broker, self._results, self._failures = app, broker, results, failures
        self._threads = threads
        self.hostname = f"testing-{number}@localhost"
        self.stopped: set[str] = set()
        self.timers = Timers()
        self._picking = threading.RLock()
        self._busy: set[str] = set()
        self._taken: deque[Any] = deque()
        self._turns: deque[str] = deque()
        self._key_order = KeyOrder(app)
        self._consumer: Any = None
        self._receive: Callable[[Any], Any]
        self._channel: Any = None

    # --- start and end

    def open(self) -> None:
        """Connect to the broker, and be ready to take messages."""
        app = self.app
        pool = safe_pool(TaskPool)(app=app, initargs=(app, self.hostname))
        controller = SimpleNamespace(app=app, pool=pool, state=state, use_eventloop=False, max_concurrency=1)
        consumer: Any = AgentConsumer(
            self._taken.append,
            hostname=self.hostname,
            pool=pool,
            app=app,
            timer=self.timers,
            controller=controller,
            initial_prefetch_count=1,
            worker_options={"without_mingle": True, "without_gossip": True, "without_heartbeat": True},
        )
        self._consumer = controller.consumer = consumer
        consumer.event_dispatcher = None
        consumer.connection = app.connection_for_read()
        self._channel = consumer.connection.default_channel
        consumer.qos = QoS(lambda prefetch_count: None, 1)
        self.renew()
        self._mailbox = Pidbox(consumer)
        self._mailbox.node.channel = self._channel
        self._broker.listeners.append(self._obey)

    def renew(self) -> None:
        """Take the handlers and queues that were added since the start."""
        consumer = self._consumer
        consumer.update_strategies()
        self._key_order.renew()
        queues = self.app.amqp.queues
        for queue in (system_queue(), *map(agent_queue, self.app.agents)):
            if queue.name not in queues.consume_from:
                queues.select_add(copy(queue))  # Celery changes the exchange of a queue
        for queue in queues.consume_from.values():
            queue(self._channel).declare()
        consumer.task_consumer = SimpleNamespace(channel=self._channel)
        self._receive = consumer.create_task_handler()
        self._turns = deque(queues.consume_from)

    def close(self) -> None:
        """Disconnect. What was taken and not handled is forgotten."""
        if self._consumer is not None:
            for request in tuple(state.requests.values()):
                if getattr(request, "app", None) is self.app:
                    state.task_ready(request)
            self._consumer.connection.close()

    # --- for whoever waits

    def handle_next(self) -> bool:
        """Handle one message, or do what a timer asks for, and return whether there was anything to do."""
        with self._picking:
            fired = self.timers.fire()
            self._consumer.perform_pending_operations()
            request = self._next()
            if request is None:
                return fired
            agent = _agent_of(request)
            self._busy.add(agent)
        try:
            with self._threads.noted(works=True), _current(self.app):
                self._handle(request)
        finally:
            with self._picking:
                self._busy.discard(agent)
        return True

    def _next(self) -> Any:
        """Return the next request that may be handled now; None: there is none."""
        while True:
            for request in self._taken:
                if _agent_of(request) not in self._busy | self.stopped:
                    self._taken.remove(request)
                    return request
            if not self._take():
                return None

    def _take(self) -> bool:
        """Take a message from one of the queues, and return whether there was one. The queues take turns."""
        for _ in range(len(self._turns)):
            queue = self._turns[0]
            self._turns.rotate(-1)
            agent = queue.removeprefix(AGENT_QUEUES)
            if agent in self._busy or agent in self.stopped:
                continue
            message = self._channel.basic_get(queue)
            if message is not None:
                message.accept = prepare_accept_content(self.app.conf.accept_content)
                self._receive_in_order(message)
                return True
        return False

    def _receive_in_order(self, message: Any) -> None:
        """Give a message to the consumer, unless an earlier one of its key is tried again first."""
        if self._key_order.holds(message):
            return
        self._receive(message)
        if message.acknowledged:  # it was dropped, and nobody handles it
            self._end_attempt(message)

    def _end_attempt(self, message: Any) -> None:
        """Let the messages go on that have waited for this one."""
        message_id = str(message.headers.get("id"))
        is_retried = message_id in self._broker.retried
        self._broker.retried.discard(message_id)
        for each in self._key_order.end(message, is_retried=is_retried):
            self._receive_in_order(each)

    def _handle(self, request: Any) -> None:
        """Give a request to the pool, which handles it in this thread."""
        task: Any = getattr(request, "task", None)
        if getattr(task, "agent", None) is None:  # a task of Celery's, or a batch
            self._give_to_pool(request)
            return
        if self._failures.loses_answer(task.agent, task.handler):
            self._results.lost.add(str(request.id))
        try:
            with self._failures.around(task, request.message.delivery_tag):
                self._give_to_pool(request)
        except Killed as killed:
            logger.info("%s: the broker delivers the message again", killed, extra={"action": "killed_in_test"})
            state.task_ready(request)
            request.message.requeue()
            return
        with self._picking:
            self._end_attempt(request.message)

    def _give_to_pool(self, request: Any) -> None:
        try:
            request.execute_using_pool(self._consumer.pool)
        except TaskRevokedError:  # it was cancelled or has expired meanwhile, and has ended
            logger.debug("%s is not handled: it was revoked", request)
        self._consumer.perform_pending_operations()

    def _obey(self, message: Any) -> None:
        """Obey a remote control command, as a worker does when it arrives."""
        self._mailbox.on_message(message.decode(), message)

    def read_cancellations(self) -> None:
        """Read the cancellations from the ledger, as each heartbeat does."""
        read_cancellations(self.app, self._consumer.pool)


@contextmanager
def _current(app: Any) -> Iterator[None]:
    """Make an application the current one of this thread in this block, as it is in its worker."""
    before: Any = current_app._get_current_object()  # type: ignore[attr-defined]  # a proxy
    app.set_current()
    try:
        yield
    finally:
        before.set_current()


def _agent_of(request: Any) -> str:
    """Return the agent of a request; of a batch and of a task of Celery's, its name."""
    task = getattr(request, "task", None) or getattr(request, "_task", None)
    return str(getattr(task, "agent", None) or getattr(task, "name", ""))
