"""Counts messages that a rate limit refused, and writes at most two rows a minute for each agent and rule.

The first refusal in a minute is written at once. All further ones of the same agent and rule are written together,
when the minute or the process ends. So an agent that is refused a thousand times a second does not fill the
ledger.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from waooaw_celery.ledger.database.rows import LedgerRow, refusal_row

#: Seconds in the interval whose refusals are counted together.
MINUTE = 60
#: Most pairs of agent and rule that are counted apart at a time; all others share one row without names.
MAX_ROWS = 1000
#: Seconds from the end of a minute until its remaining count is written.
_GRACE = 1.0
#: The agent, and the rule, of the shared row.
OTHER_AGENTS = "*"


@dataclass(slots=True)
class _Count:
    minute: int
    rows_written: int = 0
    unwritten: int = 0


class RefusalCounter:
    """Counts the refusals of one process until they are written.

    Args:
        write: writes rows to the ledger, without waiting.
        clock: returns the time in seconds since 1970.
    """

    def __init__(self, write: Callable[[list[LedgerRow]], None], clock: Callable[[], float] = time.time) -> None:
        self._write, self._clock = write, clock
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], _Count] = {}
        self._process = f"{os.getpid()}-{uuid4().hex[:8]}"
        self._timer: threading.Timer | None = None

    def add(self, agent: str, rule: str, count: int) -> None:
        """Count refusals of an agent's messages by a rule."""
        minute = int(self._clock() // MINUTE)
        with self._lock:
            rows = self._take_finished(before=minute)
            key = agent, rule
            if key not in self._counts and len(self._counts) >= MAX_ROWS:
                key = OTHER_AGENTS, OTHER_AGENTS
            counted = self._counts.setdefault(key, _Count(minute))
            counted.unwritten += count
            if not counted.rows_written:
                rows.append(self._row(key, counted))
            elif self._timer is None:
                self._timer = threading.Timer(MINUTE - self._clock() % MINUTE + _GRACE, self.flush)
                self._timer.daemon = True
                self._timer.start()
        if rows:
            self._write(rows)

    def flush(self) -> None:
        """Write all counts that were not written."""
        with self._lock:
            rows = self._take_finished(before=int(self._clock() // MINUTE))
            rows += [self._row(key, counted) for key, counted in self._counts.items() if counted.unwritten]
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        if rows:
            self._write(rows)

    def _take_finished(self, before: int) -> list[LedgerRow]:
        """Remove the counts of past minutes, and return rows for what was not written of them."""
        finished = {key: counted for key, counted in self._counts.items() if counted.minute < before}
        for key in finished:
            del self._counts[key]
        return [self._row(key, counted) for key, counted in finished.items() if counted.unwritten]

    def _row(self, key: tuple[str, str], counted: _Count) -> LedgerRow:
        counted.rows_written += 1
        number, counted.unwritten = counted.unwritten, 0
        minute = datetime.fromtimestamp(counted.minute * MINUTE, UTC)
        return refusal_row(*key, minute, self._process, counted.rows_written, number)
