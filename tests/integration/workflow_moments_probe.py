"""The agent of the workflow probe with workflows that fail, wait and branch in ways that are rare."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from workflow_probe import NAME, agent, effect
from workflow_probe import app as app

from waooaw_celery.errors import WaooawError


class Interruption(BaseException):
    """An error that is no Exception, as those of several libraries."""


def gate(path: str) -> str:
    """Wait until a file exists."""
    effect(f"at {Path(path).name}")
    deadline = time.monotonic() + 60
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return "there"


def refuse() -> None:
    raise ValueError("refused")


def interrupt() -> None:
    effect("interrupt")
    raise Interruption("stop")


def end_process(word: str) -> None:
    effect(f"ends {word}")
    os._exit(1)


async def await_cancelled() -> None:
    task = asyncio.ensure_future(asyncio.sleep(10))
    task.cancel()
    await task


async def act_later(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return effect("acted later")


@agent.method
def slow(path: str) -> str:
    return gate(path)


# --- plain functions


@agent.workflow
def plain_race(flow: Any) -> list[Any]:
    first = flow.race(lambda: flow.wait_for("a"), lambda: flow.sleep(0.05))
    effect("raced")
    return [first.branch, flow.wait_for("a")]


@agent.workflow
def plain_race_goes_on(flow: Any) -> int:
    """The branch that loses has another step, and the function computes for a while."""

    def loses() -> None:
        flow.sleep(2)
        flow.step(effect, "the loser went on")

    first = flow.race(loses, lambda: flow.sleep(0.05))
    time.sleep(0.3)
    flow.step(effect, "after the race")
    flow.sleep(2.5)
    return int(first.branch)


@agent.workflow
def plain_gather_fails(flow: Any) -> str:
    try:
        flow.gather(lambda: flow.wait_for("never"), lambda: flow.step(refuse))
    except WaooawError:
        flow.sleep(0.1)
    return str(flow.step(effect, "caught"))


@agent.workflow
def plain_raises(flow: Any, what: str) -> None:
    flow.step(effect, "one step")
    if what == "stop iteration":
        next(iter(()))
    raise Interruption(what)


@agent.workflow
def plain_waits(flow: Any) -> Any:
    return flow.wait_for("go")


@agent.workflow
def plain_child(flow: Any, path: str, child: str) -> Any:
    """Waits outside of a step, so that nothing is written before the child begins."""
    flow.step(effect, "one step")
    gate(path)
    return flow.child(f"{NAME}.local", {"rounds": 1}, workflow_id=child)


# --- steps


@agent.workflow
async def step_interrupts(flow: Any) -> Any:
    return await flow.step(interrupt)


@agent.workflow
async def step_is_cancelled(flow: Any) -> Any:
    return await flow.step(await_cancelled)


@agent.workflow
async def step_loses(flow: Any, seconds: float) -> int:
    first = await flow.race(flow.step(act_later, seconds), flow.sleep(0.05))
    return int(first.branch)


@agent.workflow
async def awaits_twice(flow: Any) -> Any:
    step = flow.step(effect, "awaited twice")
    return await flow.gather(step, step)


@agent.workflow
async def keyed(flow: Any, key: str) -> Any:
    return await flow.step(effect, "keyed", key=key)


# --- children


@agent.workflow
async def same_child(flow: Any, child: str, rounds: int = 1, together: bool = False) -> list[Any]:
    name = f"{NAME}.local"
    steps = [flow.child(name, {"rounds": number}, workflow_id=child) for number in (1, rounds)]
    return list(await flow.gather(*steps)) if together else [await step for step in steps]


@agent.workflow
async def child_in_each_run(flow: Any, child: str, more: int) -> Any:
    result = await flow.child(f"{NAME}.local", {"rounds": 1}, workflow_id=child)
    if more:
        flow.continue_as_new(child=child, more=more - 1)
    return result


# --- compensations and commands


@agent.workflow
async def undone_slowly(flow: Any, path: str, fails: bool) -> None:
    """Its second compensation waits for a file."""
    flow.compensate(effect, "undo 1")
    flow.compensate(NAME, "slow", {"path": path})
    flow.compensate(effect, "undo 3")
    await flow.step(effect, "did")
    if fails:
        await flow.step(refuse)
    await flow.wait_for("go")
    await flow.step(effect, "went on")


@agent.workflow
async def undone_never(flow: Any, attempts: int) -> None:
    flow.compensate(effect, "undo 1")
    flow.compensate(effect, "undo 2", attempts=attempts)
    await flow.step(refuse)


@agent.workflow
async def undo_ends_process(flow: Any) -> None:
    flow.compensate(effect, "undo 1")
    flow.compensate(end_process, "undo 2")
    await flow.step(refuse)


@agent.workflow
async def gated(flow: Any, path: str) -> Any:
    await flow.step(gate, path)
    return await flow.step(effect, "after the gate")


@agent.workflow
async def begins_again(flow: Any, n: int = 0) -> None:
    await flow.step(str, n)
    flow.continue_as_new(n=n + 1)


@agent.workflow
async def ends_process_if(flow: Any, path: str) -> Any:
    if Path(path).exists():
        os._exit(1)
    return await flow.wait_for("go")


if os.environ.get("PROBE_VERSION") != "2":

    @agent.workflow(name="of_a_version")
    async def of_version_1(flow: Any, path: str) -> None:
        flow.compensate(effect, "undo 1")
        flow.compensate(NAME, "slow", {"path": path})
        await flow.wait_for("go")
        await flow.step(effect, "went on")

else:

    @agent.workflow(name="of_a_version", version=2)
    async def of_version_2(flow: Any, path: str) -> None:
        await flow.wait_for("go")
