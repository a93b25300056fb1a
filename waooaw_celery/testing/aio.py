"""The operations of a harness as coroutines, for a test that is an ``async def``."""

from __future__ import annotations

import asyncio
from typing import Any

from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.messages.validation import JSON


class AsyncHarness:
    """The operations of a harness that take time, for an ``async def`` test.

    Args:
        harness: the Harness.
    """

    def __init__(self, harness: Any) -> None:
        self._harness = harness

    async def run(self) -> None:
        """Handle all messages; see ``Harness.run``."""
        await asyncio.to_thread(self._harness.run)

    async def advance(self, **passed: float) -> None:
        """Let time pass; see ``Clock.advance``."""
        await asyncio.to_thread(lambda: self._harness.clock.advance(**passed))

    async def request(self, *args: Any, **options: Any) -> JSON:
        """Ask an agent; see ``Harness.request``."""
        return await asyncio.to_thread(lambda: self._harness.request(*args, **options))

    async def send(self, *args: Any, **options: Any) -> DeliveryReceipt:
        """Send a message; see ``Harness.send``."""
        return await asyncio.to_thread(lambda: self._harness.send(*args, **options))

    async def result(self, workflow_id: str, timeout: float = 30.0) -> JSON:
        """Return the result of a workflow; see ``Harness.result``."""
        return await asyncio.to_thread(self._harness.result, workflow_id, timeout)
