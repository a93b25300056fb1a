"""Messages that a rate limit refused: counted in the process, and told to the ledger twice a minute at most.

The first one of a minute is told at once, and all further ones of the same agent and rule together, when the
minute is over or the process ends: so whoever is refused a thousand times a second does not fill the ledger.
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

#: Seconds in a minute, in which refusals are counted together.
MINUTE = 60
#: Agents and rules that are counted at the same time; what is beyond them is told without their names.
MAX_ROWS = 1000
#: Seconds after the end of a minute at which its rest is told.
_GRACE = 1.0
#: Stands for the agent of what is beyond.
OTHER_AGENTS = "*"


@dataclass(slots=True)
class _Count:
    minute: int
    told: int = 0
    untold: int = 0


class Refusals:
    """The refusals of one process that the ledger does not have yet.

    Args:
        tell: hands entries to the ledger.
        clock: tells the time in seconds since 1970.
    """

    def __init__(self, tell: Callable[[list[LedgerRow]], None], clock: Callable[[], float] = time.time) -> None:
        self._tell, self._clock = tell, clock
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], _Count] = {}
        self._process = f"{os.getpid()}-{uuid4().hex[:8]}"
        self._timer: threading.Timer | None = None

    def add(self, agent: str, rule: str, count: int) -> None:
        """Count refusals of an agent by a rule."""
        minute = int(self._clock() // MINUTE)
        with self._lock:
            entries = self._take(before=minute)
            key = agent, rule
            if key not in self._counts and len(self._counts) >= MAX_ROWS:
                key = OTHER_AGENTS, OTHER_AGENTS
            found = self._counts.setdefault(key, _Count(minute))
            found.untold += count
            if not found.told:
                entries.append(self._entry(key, found))
            elif self._timer is None:
                self._timer = threading.Timer(MINUTE - self._clock() % MINUTE + _GRACE, self.flush)
                self._timer.daemon = True
                self._timer.start()
        if entries:
            self._tell(entries)

    def flush(self) -> None:
        """Tell the ledger all that it does not know yet."""
        with self._lock:
            entries = self._take(before=int(self._clock() // MINUTE))
            entries += [self._entry(key, count) for key, count in self._counts.items() if count.untold]
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        if entries:
            self._tell(entries)

    def _take(self, before: int) -> list[LedgerRow]:
        """Forget the minutes that are over, and return what of them was not told."""
        over = {key: count for key, count in self._counts.items() if count.minute < before}
        for key in over:
            del self._counts[key]
        return [self._entry(key, count) for key, count in over.items() if count.untold]

    def _entry(self, key: tuple[str, str], count: _Count) -> LedgerRow:
        count.told += 1
        number, count.untold = count.untold, 0
        minute = datetime.fromtimestamp(count.minute * MINUTE, UTC)
        return refusal_row(*key, minute, self._process, count.told, number)
