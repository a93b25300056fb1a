"""Whether leases that are over prove anything: not while nobody could renew them, since the server stood still."""

from __future__ import annotations

import time
from typing import ClassVar

#: Gaps without a quiet moment between them after which leases that are over are believed all the same.
MOST_GAPS = 5


def _now() -> float:
    """Return seconds on a clock that goes on while the computer is suspended, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)  # Linux only
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class PauseDetector:
    """Knows for how long the server has answered one process without a gap.

    After a gap (the server, the line or the computer stood still) each living consumer needs a moment to renew its
    leases. Whoever looked before that would take their messages from them.

    Where one gap follows another, as on a computer that is far too busy, no quiet time would ever come: it waits
    for a few gaps only.

    The first one of a process lets it look at once: it has seen no gap, and where each worker dies soon after its
    start nobody would ever look otherwise. Those of later channels begin as after a gap, since a line was lost.

    Args:
        longest_gap: seconds between two answers above which there was a gap.
        patience: seconds without a gap after which a lease that is over proves that its consumer is gone.
    """

    _is_first: ClassVar[bool] = True

    def __init__(self, longest_gap: float, patience: float) -> None:
        self._longest_gap, self._patience = longest_gap, patience
        self._answered_at = _now()
        self._steady_since = self._answered_at - (patience if PauseDetector._is_first else 0.0)
        self._gaps = 0
        PauseDetector._is_first = False

    def answered(self) -> bool:
        """Note that the server answers, and return whether it has done so for long enough."""
        now = _now()
        if now - self._answered_at > self._longest_gap:
            self._steady_since = now
            self._gaps += 1
        self._answered_at = now
        if now - self._steady_since >= self._patience:
            self._gaps = 0
            return True
        return self._gaps > MOST_GAPS
