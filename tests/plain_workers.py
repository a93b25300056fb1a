"""Runs plain Celery workers on Kombu's transport or this package's, and records what they did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import Celery
from plain import make_app
from process_pool import spawn
from redis import Redis
from support import PROBE_FOLDER, until

from waooaw_celery.store.connection import store_url
from waooaw_celery.testing.embedded import end_all


class Plant:
    """A queue, the plain Celery workers that consume it, and what they did.

    Args:
        url: URL of the server.
        folder: folder for the logs of the workers.
        kind: ``ours`` or ``kombu``: the transport with which the tests publish.
        settings: settings of Celery.
        transport_options: options of the broker's transport.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        kind: str = "ours",
        settings: dict[str, Any] | None = None,
        transport_options: dict[str, Any] | None = None,
    ) -> None:
        self.url, self.folder, self.kind = url, folder, kind
        self.queue = f"plant-{uuid4().hex[:8]}"
        self.unacked = f"unacked-{self.queue}"
        keys = {"unacked_key": self.unacked, "unacked_index_key": f"{self.unacked}-index"}
        self.settings: dict[str, Any] = {
            "task_default_queue": self.queue,
            "broker_transport_options": keys | (transport_options or {}),
            **(settings or {}),
        }
        self.redis: Any = Redis.from_url(store_url(url))
        self.app: Celery = make_app(kind, url, **self.settings)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self, *options: str, kind: str | None = None, env: dict[str, str] | None = None, mingles: bool = False
    ) -> str:
        """Start a worker, and return its node name when it answers."""
        [node] = self.start_all([options], kind=kind, env=env, mingles=mingles)
        return node

    def start_all(
        self,
        each: Sequence[Sequence[str]],
        *,
        kind: str | None = None,
        env: dict[str, str] | None = None,
        mingles: bool = False,
    ) -> list[str]:
        """Start several workers at once, each with its options, and return their node names."""
        started = []
        for options in each:
            node = f"w{len(self.processes)}-{self.queue}@t"
            command = [
                sys.executable,
                "-m",
                "celery",
                "-A",
                "plain",
                "worker",
                "-n",
                node,
                "-c",
                "1",
                "-l",
                "INFO",
            ]
            command += [*([] if mingles else ["--without-mingle"]), "--without-gossip", *options]
            environment = os.environ | {
                "TRANSPORT": kind or self.kind,
                "CELERY_BROKER_URL": self.url,
                "EFFECTS_URL": self.url,
                "SETTINGS": json.dumps(self.settings),
            }
            log = self.folder / f"{node}.log"
            self.processes[node] = spawn(command, log=log, env=environment | (env or {}), cwd=PROBE_FOLDER)
            started.append(node)

        def answer() -> bool:
            for node in started:
                assert self.processes[node].poll() is None, (self.folder / f"{node}.log").read_text()
            return len(self.app.control.ping(destination=started, timeout=0.5)) == len(started)

        until(answer, f"the start of {started}")
        return started

    def send(self, label: Any, seconds: float = 0.0, **options: Any) -> Any:
        """Send a task, and return Celery's AsyncResult."""
        return self.app.tasks["plain.work"].apply_async((label, seconds), **options)

    def effects(self, what: str) -> list[dict[str, Any]]:
        """Return the recorded events of a kind, ``began`` or ``ended``, in order."""
        facts = [json.loads(fact) for fact in self.redis.lrange(f"effects:{self.queue}", 0, -1)]
        return [fact for fact in facts if fact["what"] == what]

    def labels(self, what: str = "ended") -> list[Any]:
        """Return the labels of the tasks that began or ended, in order."""
        return [fact["label"] for fact in self.effects(what)]

    def wait(self, label: Any, what: str = "ended", seconds: float = 30.0) -> None:
        """Wait until a task began or ended."""
        until(lambda: label in self.labels(what), f"{label!r} {what}", seconds)

    def waiting(self) -> list[bytes]:
        """Return the raw messages in the queue, the next one first."""
        return list(reversed(self.redis.lrange(self.queue, 0, -1)))

    def held(self) -> int:
        """Return the number of unacknowledged messages."""
        return int(self.redis.hlen(self.unacked))

    def close(self) -> None:
        """End the workers and close the connections."""
        end_all(self.processes.values())
        self.app.close()
        self.redis.close()


@contextmanager
def plant(*args: Any, **kwargs: Any) -> Iterator[Plant]:
    """Yield a Plant during the block."""
    made = Plant(*args, **kwargs)
    try:
        yield made
    finally:
        made.close()
