"""An agent for tests whose worker can be blocked in each known way.

PROBE_NAME is its name. PROBE_SETTINGS are its settings, as JSON. PROBE_WEDGE names what is blocked from the start.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.concurrency.prefork import TaskPool as ProcessPool
from celery.concurrency.solo import TaskPool as SoloPool
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.worker.control import control_command

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.worker.health import native_thread as native

app = create_app("probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)


@agent.on(MessageType.COMMAND)
def command(message: Message) -> None:
    do = message.payload
    time.sleep(do.get("sleep", 0))
    if "fail" in do:
        raise ValueError(do["fail"])


@agent.on(MessageType.ACK, rate_limit="10/m")
def ack(message: Message) -> None:
    """One message every six seconds, after the first."""


@agent.method
async def think(seconds: float) -> float:
    """Block the event loop of the handlers."""
    time.sleep(seconds)
    return seconds


@control_command()
def wedge_asleep(state: Any) -> None:
    """Block the thread that consumes, like a lock that is never released."""
    native.sleep(3600)


@control_command()
def wedge_busy(state: Any) -> None:
    """Loop without end in the thread that consumes."""
    while True:
        sum(range(1000))


@control_command()
def wedge_for(state: Any, seconds: float) -> None:
    """Block the thread that consumes for some seconds."""
    native.sleep(seconds)


@control_command()
def wedge_deaf(state: Any) -> None:
    """Stop consuming without telling Celery: messages wait, and nothing is claimed."""
    consumer = state.consumer.task_consumer
    for tag in consumer._active_tags.values():
        consumer.channel.basic_cancel(tag)


class NeverConsumes(bootsteps.StartStopStep):
    """A step of the consumer that never ends, like mingle when its answers never time out."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, parent: Any) -> None:
        while True:
            time.sleep(0.01)


class NeverConnects(bootsteps.StartStopStep):
    """A step of the worker that never ends."""

    requires = ("waooaw_celery.worker.health.watchdog:Watchdog",)

    def start(self, parent: Any) -> None:
        while True:
            time.sleep(0.01)


if os.environ.get("PROBE_WEDGE") == "before_consuming":
    app.steps["consumer"].add(NeverConsumes)
if os.environ.get("PROBE_WEDGE") == "before_connecting":
    app.steps["worker"].add(NeverConnects)


def losing(callback: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a callback that loses the results of handlers that failed, like a future that nobody reads."""

    def call(result: Any) -> Any:
        return None if result[0] else callback(result)

    return call


class LosingThreads(ThreadPool):
    """Threads that lose a slot with each handler that fails."""

    def on_apply(self, *args: Any, callback: Any = None, **kwargs: Any) -> Any:
        return super().on_apply(*args, callback=losing(callback), **kwargs)


class LosingProcesses(ProcessPool):
    """Processes that lose a slot with each handler that fails."""

    def on_start(self) -> None:
        super().on_start()
        apply = self.on_apply
        self.on_apply = lambda *args, callback, **kwargs: apply(*args, callback=losing(callback), **kwargs)


class LosingSolo(SoloPool):
    """A solo pool that loses its slot with a handler that fails."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        apply = self.on_apply
        self.on_apply = lambda *args, callback, **kwargs: apply(*args, callback=losing(callback), **kwargs)


class DeafThreads(ThreadPool):
    """A pool that accepts nothing."""

    def on_apply(self, *args: Any, **kwargs: Any) -> Any:
        return None
