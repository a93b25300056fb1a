"""A test agent whose handlers log what they get, in every way."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from celery.utils.log import get_task_logger

from waooaw_celery import Agent, Message, MessageType, create_app
from waooaw_celery.agents import MessageBatch

app = create_app("json_log_probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)
task_logger = get_task_logger(__name__)
logger = logging.getLogger(__name__)


class Hostile:
    """A value that cannot be written in any way."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Talkative(Exception):
    """An exception whose text has several lines."""


@agent.method
def log(text: str) -> None:
    logger.warning("module: %s", text)
    task_logger.warning("task: %s", text)
    print("print: " + text)
    logger.warning("surrogate: \udc80 %s", text, extra={"action": "extra", "attempt": float("nan")})
    logger.warning("hostile: %s", Hostile())
    logger.warning("wrong %d %d", "arguments")
    logger.warning("other", extra={"message_id": "another-id"})
    logger.warning("data", extra={"data": text, "payload": text, "workflow_id": Hostile})
    try:
        raise Talkative(text + "\nsecond line")
    except Talkative:
        logger.exception("caught")


@agent.method
async def log_later(text: str) -> None:
    logger.warning("before: %s", text)
    await asyncio.sleep(0)
    await asyncio.gather(within(text), asyncio.to_thread(logger.warning, "thread: %s", text))


async def within(text: str) -> None:
    logger.warning("within: %s", text)


@agent.method(retries=1)
def retry_once(text: str) -> int:
    attempts = Path(os.environ["PROBE_FOLDER"], "attempts")
    with attempts.open("a") as file:
        file.write("x")
    logger.warning("attempt %d", len(attempts.read_text()))
    if len(attempts.read_text()) == 1:
        raise Talkative(text)
    return 1


@agent.method
def fail(text: str) -> None:
    raise Talkative(text)


if "gevent" not in sys.argv:  # a pool of greenlets takes no batches

    @agent.on(MessageType.QUERY, batch=5, within=0.01)
    def query(batch: MessageBatch) -> None:
        logger.warning("batch of %d", len(batch))


@agent.on(MessageType.COMMAND)
def command(message: Message) -> None:
    do: Any = message.payload
    if "die" in do and not Path(do["die"]).exists():
        Path(do["die"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if "span" in do:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        trace.set_tracer_provider(TracerProvider())
        with trace.get_tracer("tests").start_as_current_span("handle") as span:
            logger.warning("span %032x", span.get_span_context().trace_id)
        logger.warning("no span")
    if "sleep" in do:
        time.sleep(do["sleep"])
