"""The agent of the workflow probe with a workflow that follows a plan: its steps are chosen by the test."""

from __future__ import annotations

import asyncio
from typing import Any

from workflow_probe import NAME, agent
from workflow_probe import app as app

from waooaw_celery.agents import Flow


def add_one(n: int) -> int:
    return n + 1


@agent.workflow
async def sleeps_and_asks(flow: Flow, n: int) -> int:
    """What a plan starts as a child."""
    await flow.sleep(0.01 * (n % 4))
    found: int = await flow.request(NAME, "double", {"n": n})
    return found


@agent.workflow
async def follows_a_plan(flow: Flow, n: int, plan: list[str]) -> list[Any]:
    """Make the steps of a plan, one after the other, and return their results."""
    return [await carry_out(flow, kind, place, n) for place, kind in enumerate(plan)]


async def carry_out(flow: Flow, kind: str, place: int, n: int) -> Any:
    first, second = f"{place} first", f"{place} second"
    match kind:
        case "signal":
            return await flow.wait_for(first)
        case "two signals":
            return await flow.gather(flow.wait_for(first), flow.wait_for(second))
        case "sleep":
            return await flow.sleep(0.005 * (n % 7))
        case "request":
            return await flow.request(NAME, "double", {"n": n})
        case "local":
            return await flow.step(add_one, n)
        case "no step":
            return await asyncio.sleep(0.002 * (n % 5))
        case "child":
            return await flow.child(f"{NAME}.sleeps_and_asks", {"n": n})
        case "race":
            await flow.race(flow.wait_for(first), flow.sleep(0.02))
            return None  # either may win
        case "many":
            asked = [flow.request(NAME, "double", {"n": each}) for each in range(12)]
            return await flow.gather(*asked, flow.wait_for(first))
    raise AssertionError(kind)
