"""A test agent with workflows, and with the methods that they request.

PROBE_NAME is its name. PROBE_EFFECTS is a file to which each effect appends a line.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.agents import run_task_graph
from waooaw_celery.errors import UnknownAgent
from waooaw_celery.worker.retries.retry_policy import RetryPolicy

app = create_app("workflows", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
NAME = os.environ["PROBE_NAME"]
agent = Agent(NAME, app, capabilities=["hear"], tags=[NAME])


def effect(line: str) -> str:
    """Append a line to the file of effects."""
    with Path(os.environ["PROBE_EFFECTS"]).open("a") as file:
        file.write(line + "\n")
    return line


@agent.method
def double(n: int) -> int:
    return 2 * n


@agent.method(capability="double", version="2.1")
def double_exactly(n: int) -> int:
    return 2 * n


@agent.method
def create(item: str) -> dict[str, str]:
    return {"id": effect(f"create {item}")}


@agent.method
def delete(item: str) -> None:
    effect(f"delete {item}")


@agent.method
def fail(text: str = "no") -> None:
    raise ValueError(text)


@agent.method
def fail_until(path: str) -> str:
    effect("attempt")
    if not Path(path).exists():
        Path(path).touch()
        raise ConnectionError("not yet")
    return "done"


@dataclass
class Order:
    item: str
    count: int


@agent.workflow
async def adds(flow: Any, start: int, rounds: int = 3, wrong: bool = False) -> int:
    total = start
    for _ in range(rounds):
        total += await flow.request(NAME, "double", {"m" if wrong else "n": 1})
    return total


@agent.workflow
async def local(flow: Any, rounds: int, word: str = "x") -> list[str]:
    return [await flow.step(effect, f"{word} {number}") for number in range(rounds)]


@agent.workflow
def blocking(flow: Any, n: int) -> dict[str, Any]:
    first = flow.request(NAME, "double", {"n": n})
    both = flow.gather(
        lambda: flow.request(NAME, "double", {"n": 10}),
        lambda: [flow.step(effect, "one"), flow.request(NAME, "double", {"n": 20})],
    )
    flow.sleep(0.01)
    return {"first": first, "both": both, "mapped": flow.map(lambda n: flow.step(effect, f"m{n}"), [1, 2])}


@agent.workflow
async def order(flow: Any, order: Order) -> str:
    assert isinstance(order, Order)
    return f"{order.count} {order.item}"


@agent.workflow
async def approve(flow: Any, timeout: float = 60) -> Any:
    flow.progress({"asked": True})
    return await flow.wait_for("approval", timeout=timeout)


@agent.workflow
async def naps(flow: Any, seconds: float) -> str:
    before = flow.now()
    await flow.sleep(seconds)
    return f"{(flow.now() - before).total_seconds() >= seconds} {flow.random()} {flow.uuid()}"


@agent.workflow
async def saga(flow: Any, end: str) -> str:
    await flow.request(NAME, "create", {"item": "a"})
    flow.compensate(NAME, "delete", {"item": "a"})
    await flow.step(effect, "create b")
    flow.compensate(effect, "delete b")
    if end == "fail":
        await flow.request(NAME, "fail", {"text": "too bad"})
    if end == "wait":
        await flow.wait_for("never")
    return "done"


@agent.workflow
async def races(flow: Any) -> Any:
    async def slow() -> str:
        await flow.sleep(30)
        return "slow"

    return list(await flow.race(slow(), flow.request(NAME, "double", {"n": 4})))


@agent.workflow
async def fans_out(flow: Any, count: int, limit: int | None = None) -> int:
    return sum(await flow.map(lambda n: flow.request(NAME, "double", {"n": n}), range(count), limit=limit))


@agent.workflow
async def retries(flow: Any, path: str) -> Any:
    return await flow.request(NAME, "fail_until", {"path": path}, retry=RetryPolicy.fixed(3, 0.05))


@agent.workflow
async def step_retries(flow: Any, path: str) -> Any:
    return await flow.step(fail_until_local, path, retry=RetryPolicy.fixed(3, 0.05))


@agent.workflow
async def fails_once(flow: Any, path: str) -> Any:
    await flow.step(effect, f"before {path}")
    return await flow.step(fail_until_local, path)


def fail_until_local(path: str) -> str:
    effect("local attempt")
    if not Path(path).exists():
        Path(path).touch()
        raise ConnectionError("not yet")
    return "done"


@agent.workflow
async def parent(flow: Any, fails: bool = False) -> Any:
    return await flow.child(f"{NAME}.saga", {"end": "fail" if fails else "return"})


@agent.workflow
async def counts_down(flow: Any, n: int) -> str:
    await flow.step(effect, f"count {n}")
    if n:
        flow.continue_as_new(n=n - 1)
    return "zero"


@agent.workflow
async def waits_in_step(flow: Any, gate: str) -> str:
    await flow.step(effect, "before")
    await flow.step(wait_for_file, gate)
    return await flow.step(effect, "after")


@agent.workflow
async def forgets(flow: Any) -> str:
    """Forgets to await a step."""
    flow.step(effect, "forgotten")
    return "done"


@agent.workflow
async def gives_up(flow: Any, path: str) -> Any:
    """A step that is tried five times while a file is missing."""
    return await flow.step(fail_while_missing, path, retry=RetryPolicy.fixed(5, 0.5, jitter=False))


def fail_while_missing(path: str) -> str:
    effect("try")
    if not Path(path).exists():
        raise ConnectionError("it is missing")
    return "there"


def wait_for_file(path: str) -> str:
    effect("waiting")
    deadline = time.monotonic() + 60
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return "there"


@agent.workflow
async def timeouts(flow: Any) -> str:
    try:
        await flow.step(asyncio.sleep, 30, timeout=0.1)
    except TimeoutError as error:
        return type(error).__name__
    return "no timeout"


@agent.workflow(name="versioned")
async def versioned_1(flow: Any) -> str:
    await flow.wait_for("go")
    return "1"


@agent.workflow(name="versioned", version=2)
async def versioned_2(flow: Any) -> str:
    await flow.wait_for("go")
    return "2"


@agent.workflow
async def changes(flow: Any) -> str:
    """Makes another second step once the file of effects has the line ``changed``."""
    await flow.step(effect, "one")
    has_changed = "changed" in Path(os.environ["PROBE_EFFECTS"]).read_text()
    await flow.step(effect, "two", key="other" if has_changed else "same")
    return str(await flow.wait_for("go"))


@agent.workflow
async def gains_a_branch(flow: Any, at: int) -> list[Any]:
    """Has a third branch at this place once the file of effects has the line ``changed``."""
    branches: list[Any] = [flow.step(effect, "first"), flow.wait_for("go")]
    if "changed" in Path(os.environ["PROBE_EFFECTS"]).read_text():
        branches.insert(at, flow.step(effect, "added", key="added"))
    return await flow.gather(*branches)


@agent.workflow
async def asks(flow: Any, to: str) -> Any:
    return await flow.request(to, "double", {"n": 21})


@agent.workflow
async def dies(flow: Any) -> None:
    await flow.step(effect, "alive")
    await flow.step(os._exit, 1)


@agent.workflow
async def long(flow: Any, rounds: int) -> list[Any]:
    """Steps of every kind, to be crashed at any moment."""
    made: list[Any] = []
    for number in range(rounds):
        made.append(await flow.step(effect, f"{flow.workflow_id} {number}"))
        flow.compensate(effect, f"undo {flow.workflow_id} {number}")
        made.append(
            await flow.gather(
                flow.request(NAME, "double", {"n": number}),
                flow.step(effect, f"{flow.workflow_id} {number} branch"),
            )
        )
        await flow.sleep(0.02)
    made.append(await flow.wait_for("go"))
    return made


@agent.on(MessageType.COMMAND)
def hear(message: Message) -> None:
    effect(f"heard {message.payload} in {message.conversation_id}")


@agent.subscribe("told.*")
def notice(message: Message) -> None:
    assert message.event is not None
    effect(f"noticed {message.event.topic} {message.payload}")


@agent.workflow
async def tells(flow: Any, word: str, dies: bool = False) -> list[str]:
    """Send a message and publish an event; die in between if that is wanted, once."""
    sent = await flow.send(NAME, word)
    if dies and f"died {word}" not in Path(os.environ["PROBE_EFFECTS"]).read_text():
        effect(f"died {word}")
        os._exit(1)
    return [sent, await flow.publish("told.all", word)]


@agent.workflow
async def by_capability(flow: Any, n: int) -> list[Any]:
    """Ask, and tell, an agent that is chosen; what is asked of nobody fails."""
    address = f"capability:double@>=2?tags={NAME}"
    doubled = await flow.request(address, None, {"n": n})
    sent = await flow.send(f"capability:hear?tags={NAME}", "by capability")
    try:
        await flow.request("capability:triple", None, {"n": n})
    except UnknownAgent as error:
        return [doubled, sent, type(error).__name__]
    return []


@agent.workflow
async def many_steps(flow: Any, steps: int) -> int:
    """Make many steps, a thousand at the same time."""
    total = 0
    for start in range(0, steps, 1000):
        total += sum(await flow.map(lambda n: flow.step(int, n), range(start, min(start + 1000, steps))))
    return total


@agent.workflow
async def large(flow: Any, size: int) -> int:
    """A step with a large result."""
    return len(await flow.step(str.ljust, "x", size))


agent.workflow(run_task_graph)
