"""An agent for tests of the size of pools: its handlers run until a file exists, and note each run.

PROBE_NAME is its name. PROBE_SETTINGS are its settings, as JSON. SCALING_ENDED is a folder in which each process
of the pool notes its end.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery.signals import worker_process_shutdown

from waooaw_celery import Agent, Message, MessageType, create_app

app = create_app("scaling-probe", **json.loads(os.environ.get("PROBE_SETTINGS", "{}")))
agent = Agent(os.environ["PROBE_NAME"], app)


@worker_process_shutdown.connect
def note_end(**_: Any) -> None:
    if "SCALING_ENDED" in os.environ:
        Path(os.environ["SCALING_ENDED"], str(os.getpid())).touch()


@agent.on(MessageType.COMMAND)
def command(message: Message) -> None:
    payload: Any = message.payload
    Path(payload["began"], f"{message.message_id}_{uuid4().hex[:6]}.began").touch()
    ends_at = time.monotonic() + 60
    while "hold" in payload and not Path(payload["hold"]).exists() and time.monotonic() < ends_at:
        time.sleep(0.02)
    time.sleep(payload.get("seconds", 0))


@agent.method
def echo(value: Any) -> Any:
    return value
