"""An agent whose worker can be wedged in each known way, on purpose. Named by PROBE_NAME.

PROBE_SETTINGS are its settings, as JSON; PROBE_WEDGE is what is wedged from the start, if anything.
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
    """An async def that blocks the event loop of the handlers."""
    time.sleep(seconds)
    return seconds


@control_command()
def wedge_asleep(state: Any) -> None:
    """Block the thread that consumes, as a lock does that nobody releases."""
    native.sleep(3600)


@control_command()
def wedge_busy(state: Any) -> None:
    """Turn in a circle in the thread that consumes."""
    while True:
        sum(range(1000))


@control_command()
def wedge_for(state: Any, seconds: float) -> None:
    """Block the thread that consumes for a while."""
    native.sleep(seconds)


@control_command()
def wedge_deaf(state: Any) -> None:
    """Consume no longer, without Celery's knowing it: messages wait, and nothing is claimed."""
    consumer = state.consumer.task_consumer
    for tag in consumer._active_tags.values():
        consumer.channel.basic_cancel(tag)


class NeverConsumes(bootsteps.StartStopStep):
    """A step of the consumer that does not come to its end, as mingle did when its answers never timed out."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, parent: Any) -> None:
        while True:
            time.sleep(0.01)


class NeverConnects(bootsteps.StartStopStep):
    """A step of the worker that does not come to its end."""

    requires = ("waooaw_celery.worker.health.watchdog:Watchdog",)

    def start(self, parent: Any) -> None:
        while True:
            time.sleep(0.01)


if os.environ.get("PROBE_WEDGE") == "before_consuming":
    app.steps["consumer"].add(NeverConsumes)
if os.environ.get("PROBE_WEDGE") == "before_connecting":
    app.steps["worker"].add(NeverConnects)


def losing(callback: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what takes the result of a handler, except that of one that failed: it vanishes, as in a future."""

    def take(result: Any) -> Any:
        return None if result[0] else callback(result)

    return take


class LosingThreads(ThreadPool):
    """Its slots vanish with handlers that fail."""

    def on_apply(self, *args: Any, callback: Any = None, **kwargs: Any) -> Any:
        return super().on_apply(*args, callback=losing(callback), **kwargs)


class LosingProcesses(ProcessPool):
    """The same with processes."""

    def on_start(self) -> None:
        super().on_start()
        apply = self.on_apply
        self.on_apply = lambda *args, callback, **kwargs: apply(*args, callback=losing(callback), **kwargs)


class LosingSolo(SoloPool):
    """The same in the thread that consumes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        apply = self.on_apply
        self.on_apply = lambda *args, callback, **kwargs: apply(*args, callback=losing(callback), **kwargs)


class DeafThreads(ThreadPool):
    """A pool that accepts nothing."""

    def on_apply(self, *args: Any, **kwargs: Any) -> Any:
        return None
