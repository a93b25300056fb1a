"""The live part of the overview: one reading of the servers for all browsers, sent as server-sent events.

The format is that of the HTML Living Standard, section "Server-sent events".
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.ledger.read.flows import Flows
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.maintenance.top.frame import Frame
from waooaw_celery.maintenance.top.reader import TopReader

#: Seconds for which a picture of the agents, and who sends to whom, is shown before it is read again.
FRAME_SECONDS, FLOW_SECONDS = 2.0, 10.0
#: Seconds of the past whose messages the graph shows, and how many of them at most.
FLOW_WINDOW, FLOW_MESSAGES = 300.0, 2_000
#: Seconds that a page waits for servers that do not answer.
WAIT_SECONDS = 1.0
#: Most browsers that are sent live pages at the same time.
MAX_STREAMS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the overview shows.

    Attributes:
        frame: the agents.
        flows: who sends to whom; None: there is no ledger, or it has not answered.
        flows_error: why they are not known.
    """

    frame: Frame
    flows: Flows | None
    flows_error: str | None


class LiveSnapshots:
    """Reads the servers at most once in ``FRAME_SECONDS``, and only while somebody looks.

    Args:
        app: the application.
    """

    def __init__(self, app: AgentApp) -> None:
        self._reader = TopReader(app)
        self._trail = MessageAuditTrail(app.ledger) if app.settings.database_url is not None else None
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._snapshot_at = self._flows_at = float("-inf")
        self._flows: Flows | None = None
        self._flows_error: str | None = None

    def current(self) -> Snapshot:
        """Return the newest snapshot; it is made if the last one is too old. It blocks up to ``WAIT_SECONDS``."""
        with self._lock:
            if self._snapshot is None or time.monotonic() - self._snapshot_at >= FRAME_SECONDS * 0.9:
                self._read_flows()
                frame = self._reader.frame(WAIT_SECONDS)
                self._snapshot = Snapshot(frame=frame, flows=self._flows, flows_error=self._flows_error)
                self._snapshot_at = time.monotonic()
            return self._snapshot

    def close(self) -> None:
        """Close the connections."""
        self._reader.close()

    def _read_flows(self) -> None:
        if self._trail is None or time.monotonic() - self._flows_at < FLOW_SECONDS:
            return
        self._flows_at = time.monotonic()
        try:
            self._flows, self._flows_error = self._trail.flows(FLOW_WINDOW, limit=FLOW_MESSAGES), None
        except StoreUnavailable as error:
            self._flows_error = str(error)


class LiveStream:
    """Answers a request with an event for each new snapshot, until the browser goes away or the server stops.

    Args:
        draw: returns the HTML of the live part. It blocks.
    """

    def __init__(self, draw: Callable[[Request], str]) -> None:
        self._draw = draw
        self._streams = 0
        self._stopping = False

    def stop(self) -> None:
        """End all streams within a second, so that a server which waits for its answers can stop."""
        self._stopping = True

    async def answer(self, request: Request) -> Response:
        """Answer with events."""
        if self._streams >= MAX_STREAMS:
            return Response("Too many live pages are open.", 503)
        headers = {"X-Accel-Buffering": "no"}  # nginx would keep the events back
        return StreamingResponse(self._events(request), media_type="text/event-stream", headers=headers)

    async def _events(self, request: Request) -> AsyncIterator[str]:
        self._streams += 1
        try:
            while not self._stopping:
                yield event("overview", await run_in_threadpool(self._draw, request))
                ends_at = time.monotonic() + FRAME_SECONDS
                while time.monotonic() < ends_at and not self._stopping:
                    await anyio.sleep(0.2)
        finally:
            self._streams -= 1


def event(name: str, data: str) -> str:
    """Return a server-sent event."""
    lines = "".join(f"data: {line}\n" for line in data.splitlines())
    return f"event: {name}\n{lines}\n"
