"""A worker of ordinary Celery tasks with names in two parts, such as ``shop.mul``; it declares no agent.

Its environment: KIND, ``plain`` for Celery's own application or ``ours`` for an AgentApp; SHOP_QUEUE, its queue.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from waooaw_celery import AgentApp

app = (Celery if os.environ["KIND"] == "plain" else AgentApp)("shop")
app.conf.update(task_default_queue=os.environ["SHOP_QUEUE"], broker_connection_retry_on_startup=True)


@app.task(name="shop.mul", shared=False)
def mul(a: int, b: int) -> int:
    return a * b


@app.task(name="shop.flaky", bind=True, shared=False)
def flaky(self: Any, value: int) -> int:
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return value + int(self.request.retries)


@app.task(name="shop.total", shared=False)
def total(values: list[int]) -> int:
    return sum(values)
