"""Decides whether an ended lease proves that its consumer died: not if a pause kept everyone from renewing."""

from __future__ import annotations

import time
from typing import ClassVar

#: After so many gaps in a row an ended lease is believed in any case.
MAX_GAPS = 5


def _now() -> float:
    """Return seconds on a clock that runs on while the computer is suspended, if there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)  # Linux only
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class PauseDetector:
    """Measures for how long the server has answered this process without a gap.

    A gap is a pause of the server, the network or the computer. After it, each living consumer needs time to renew
    its leases. To restore messages earlier would take them from consumers that are alive.

    On an overloaded computer the gaps may never end, so after ``MAX_GAPS`` of them the detector no longer waits.

    The first detector of a process starts without a gap: where each worker dies soon after its start, no message
    would ever be restored otherwise. Later detectors start with a gap, because a connection was lost.

    Args:
        longest_gap: Seconds between two answers beyond which they are a gap.
        quiet_seconds: Seconds without a gap after which an ended lease proves that its consumer died.
    """

    _is_first: ClassVar[bool] = True

    def __init__(self, longest_gap: float, quiet_seconds: float) -> None:
        self._longest_gap, self._quiet_seconds = longest_gap, quiet_seconds
        self._answered_at = _now()
        self._quiet_since = self._answered_at - (quiet_seconds if PauseDetector._is_first else 0.0)
        self._gaps = 0
        PauseDetector._is_first = False

    def record_answer(self) -> bool:
        """Record that the server answered, and return whether ended leases now prove something."""
        now = _now()
        if now - self._answered_at > self._longest_gap:
            self._quiet_since = now
            self._gaps += 1
        self._answered_at = now
        if now - self._quiet_since >= self._quiet_seconds:
            self._gaps = 0
            return True
        return self._gaps > MAX_GAPS
