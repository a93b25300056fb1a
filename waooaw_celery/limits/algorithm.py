"""The algorithm: what a scope has counted, and how long a message must wait. The script in ``lua/`` does the same.

Time is a number of microseconds. Each rule divides its window into ``STEPS`` steps, and all that happens in one
step happens at the same time. A message counts for its window, and for what was left of its step: so that no
window of that length, wherever it begins, ever holds more than the limit. A burst is a token bucket: it holds
``burst`` messages, a message takes one, and it is filled at the pace of the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from waooaw_celery.limits.rules import STEPS, Demand, Rule


@dataclass(slots=True)
class Window:
    """What one rule has counted.

    Attributes:
        slots: moments, in steps, the oldest first; each stands for a group of messages, and is that of the newest.
        group: how many messages are in each group but the newest.
        last: how many are in the newest.
        level: how full the bucket is: a message takes ``STEPS``, and each step brings ``limit``.
    """

    slots: list[int]
    group: int
    last: int
    level: int

    @property
    def used(self) -> int:
        """How many messages are counted."""
        return (len(self.slots) - 1) * self.group + self.last if self.slots else 0

    def count(self, step: int, n: int) -> None:
        """Count messages: into the newest group as far as there is room, then into new ones."""
        if self.slots and self.last < self.group:
            fill = min(self.group - self.last, n)
            self.slots[-1] = step
            self.last += fill
            n -= fill
        while n:
            self.last = min(self.group, n)
            self.slots.append(step)
            n -= self.last


@dataclass(slots=True)
class RateCounter:
    """What the rules of one scope have counted.

    Attributes:
        written: when something was counted last.
        skew: how far the clock has been set back, in all: for what is counted, time never goes back.
        windows: by the step of each rule.
    """

    written: int = 0
    skew: int = 0
    windows: dict[int, Window] = field(default_factory=dict)

    def reading(self, rules: Sequence[Rule], time: int) -> Reading:
        """Return how things stand now. That counts nothing; it only notes that the clock was set back."""
        now = time + self.skew
        if self.windows and now < self.written:
            self.skew += self.written - now
            now = self.written
        return Reading(now, [(rule, self._window(rule, now)) for rule in rules])

    def count(self, reading: Reading, n: int) -> None:
        """Count messages, as things stood in a reading."""
        self.written, self.windows = reading.now, {}
        for rule, window in reading.windows:
            window.count(reading.now // rule.step, n)
            window.level -= n * STEPS if rule.burst else 0
            self.windows[rule.step] = window

    def _window(self, rule: Rule, now: int) -> Window:
        full = (rule.burst or 0) * STEPS
        old = self.windows.get(rule.step)
        if old is None:
            return Window([], rule.group, 0, full)
        step, last_step = now // rule.step, self.written // rule.step
        first = 0
        while first < len(old.slots) and step - old.slots[first] > STEPS:
            first += 1
        level = min(full, old.level + (step - last_step) * rule.limit)
        if first == len(old.slots):
            return Window([], rule.group, 0, level)
        if rule.group <= old.group:  # finer groups begin when the window is empty
            return Window(old.slots[first:], old.group, old.last, level)
        fresh = Window([], rule.group, 0, level)
        for number, slot in enumerate(old.slots[first:], first + 1):
            fresh.count(slot, old.last if number == len(old.slots) else old.group)
        return fresh


@dataclass(frozen=True, slots=True)
class Reading:
    """How things stand in a scope.

    Attributes:
        now: the moment, for what is counted.
        windows: the rules and what each has counted.
    """

    now: int
    windows: list[tuple[Rule, Window]]

    def waits(self, demand: Demand, reserve: int) -> list[int | None]:
        """Return for each rule how many microseconds a demand must wait; 0: it passes; None: it never will.

        Args:
            demand: how many messages.
            reserve: the share that is kept for URGENT ones, in thousandths.
        """
        return [self._wait(rule, window, demand, reserve) for rule, window in self.windows]

    def _wait(self, rule: Rule, window: Window, demand: Demand, reserve: int) -> int | None:
        wait = self._wait_for(rule, window, demand.n, rule.limit, 0)
        if demand.ordinary and reserve:
            limit, burst = rule.without_reserve(reserve)
            kept = (rule.burst or 0) - burst
            ordinary = self._wait_for(rule, window, demand.ordinary, limit, kept)
            wait = None if wait is None or ordinary is None else max(wait, ordinary)
        return wait

    def _wait_for(self, rule: Rule, window: Window, n: int, limit: int, kept: int) -> int | None:
        """Return how long so many must wait that may use this limit, and must leave this in the bucket."""
        if n > limit or (rule.burst and n > rule.burst - kept):
            return None
        wait = 0
        over = window.used + n - limit
        if over > 0:
            wait = (window.slots[-(-over // window.group) - 1] + STEPS + 1) * rule.step - self.now
        if rule.burst:
            lacking = (n + kept) * STEPS - window.level
            if lacking > 0:
                filled = self.now // rule.step - (-lacking // rule.limit)
                wait = max(wait, filled * rule.step - self.now)
        return wait
