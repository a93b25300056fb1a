"""An agent for tests of callers that send a request again.

PROBE_NAME is its name. PROBE_SETTINGS are its settings, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from waooaw_celery import Agent, RetryPolicy, create_app

app = create_app("request-retry-probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)

THRICE = RetryPolicy(attempts=3, first_delay=0.05, factor=1, jitter=False)


def _count(marks: str) -> int:
    with Path(marks).open("a") as file:
        file.write("x")
    return len(Path(marks).read_text())


@agent.method
async def flaky(marks: str, bad: int, how: str) -> int:
    """Hang or fail for the first attempts, and return the number of this one."""
    number = _count(marks)
    if number <= bad and how == "hang":
        await asyncio.sleep(60)
    if number <= bad:
        raise ConnectionError("lost")
    return number


@agent.method(retries=THRICE)
def outer(then: str, own: str, marks: str) -> int:
    """Request a method that always fails, thrice; this handler is itself tried thrice."""
    _count(own)
    result = agent.request(then, "flaky", {"marks": marks, "bad": 99, "how": "fail"}, timeout=20, retry=THRICE)
    assert isinstance(result, int)
    return result
