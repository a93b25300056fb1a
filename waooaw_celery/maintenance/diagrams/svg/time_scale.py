"""The scale of a timeline: from a time to a place. Long times in which nothing happens are cut out."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence

#: A pause is cut out if it is longer than this share of the time in which something happens.
CUT_SHARE = 0.2
#: The width of a pause that is cut out, and the least share of the width that is left for the rest.
CUT_WIDTH, MIN_SHARE = 26.0, 0.6
#: Round steps in seconds: of less than a second, times a power of ten, and longer ones.
_STEPS = (1.0, 2.0, 5.0)
_LONG_STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)


class TimeScale:
    """Maps seconds from the beginning to pixels.

    Args:
        spans: the begin and the end of each time in which something happens, in seconds.
        width: how many pixels there are.

    Example:
        >>> scale = TimeScale([(0.0, 1.0), (100.0, 101.0)], 500)
        >>> scale.cuts
        [(1.0, 100.0)]
    """

    def __init__(self, spans: Iterable[tuple[float, float]], width: float) -> None:
        busy = _merged(spans)
        self.first, self.last = busy[0][0], busy[-1][1]
        lasting = sum(end - begin for begin, end in busy)
        pauses = [(one[1], other[0]) for one, other in itertools.pairwise(busy)]
        least = CUT_SHARE * max(lasting, 1e-3)
        #: The pauses that are cut out, as begin and end in seconds.
        self.cuts: list[tuple[float, float]] = [pause for pause in pauses if pause[1] - pause[0] > least]
        cut_width = min(CUT_WIDTH, (1 - MIN_SHARE) * width / max(len(self.cuts), 1))
        shown = max(self.last - self.first - sum(end - begin for begin, end in self.cuts), 1e-6)
        self._pixels = (width - cut_width * len(self.cuts)) / shown
        # The knots of a line of straight pieces.
        self._times, self._places, place = [self.first], [0.0], 0.0
        for begin, end in self.cuts:
            place += (begin - self._times[-1]) * self._pixels
            self._times.append(begin)
            self._places.append(place)
            place += cut_width
            self._times.append(end)
            self._places.append(place)

    def place(self, seconds: float) -> float:
        """Return the pixels from the left of a time; times before the first one are there."""
        seconds = min(max(seconds, self.first), self.last)
        number = bisect_right(self._times, seconds) - 1
        begin, place = self._times[number], self._places[number]
        if number + 1 < len(self._times) and number % 2 == 1:  # within a pause that is cut out
            share = (seconds - begin) / max(self._times[number + 1] - begin, 1e-9)
            return place + share * (self._places[number + 1] - place)
        return place + (seconds - begin) * self._pixels

    def ticks(self, least_pixels: float) -> list[float]:
        """Return round times that are at least so many pixels apart, without those in a pause that is cut out."""
        step = _round_up(least_pixels / self._pixels)
        found: list[float] = []
        begins = [self.first, *(end for _, end in self.cuts)]
        ends = [*(begin for begin, _ in self.cuts), self.last]
        for begin, end in zip(begins, ends, strict=True):
            if begin != self.first and self.place(begin) - self.place(found[-1]) >= least_pixels / 2:
                found.append(begin)  # where a pause ends, which may be short before the next round time
            for number in range(math.ceil(begin / step - 1e-9), math.floor(end / step + 1e-9) + 1):
                at = number * step
                if not found or self.place(at) - self.place(found[-1]) >= least_pixels:
                    found.append(at)
        return found


def _merged(spans: Iterable[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, max(begin, end)))
    return merged


def _round_up(seconds: float) -> float:
    """Return the first round step that is not shorter."""
    if seconds > 0.5:
        days = math.ceil(seconds / 86_400)
        return next((step for step in _LONG_STEPS if step >= seconds), days * 86_400.0)
    size = 1e-6
    while True:
        for step in _STEPS:
            if step * size >= seconds:
                return step * size
        size *= 10
