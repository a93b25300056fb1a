"""A test agent whose handlers return, raise and log what they get."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from celery.exceptions import Ignore, Reject
from celery.utils.log import get_task_logger

from waooaw_celery import Agent, Message, MessageType, create_app

app = create_app("log_probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)
task_logger = get_task_logger(__name__)
logger = logging.getLogger(__name__)


class Talkative(Exception):
    """An exception whose repr is its text, unescaped."""

    def __repr__(self) -> str:
        return str(self.args[0])


@agent.on(MessageType.COMMAND, bind=True)
def command(self: Any, message: Message) -> None:
    do: Any = message.payload
    ends_at = time.monotonic() + 30
    while "gate" in do and not Path(do["gate"]).exists() and time.monotonic() < ends_at:
        time.sleep(0.02)
    if "reject" in do:
        raise Reject(do["reject"], requeue=False)
    if "ignore" in do:
        raise Ignore(do["ignore"])
    if "retry" in do and not self.request.retries:
        raise self.retry(exc=Talkative(do["retry"]), countdown=0)
    if "log" in do:
        task_logger.warning("task: %s", do["log"])
        logger.warning("module: " + do["log"])
        print("print: " + do["log"])
        try:
            raise Talkative(do["log"])
        except Talkative:
            logger.exception("caught")


@agent.method
def give(value: Any) -> Any:
    return value


@agent.method
async def give_later(value: Any) -> Any:
    return value


@agent.method
def fail(text: str) -> None:
    try:
        raise KeyError(text)
    except KeyError as error:
        raise Talkative(text) from error


@agent.method
async def fail_later(text: str) -> None:
    raise Talkative(text)


@agent.method
def parts(text: str) -> Iterator[str]:
    yield text
    raise Talkative(text)


@agent.method
async def later_parts(text: str) -> AsyncIterator[str]:
    yield text
    raise Talkative(text)
