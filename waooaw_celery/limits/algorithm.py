"""The rate limit algorithm. The script ``lua/decide.lua`` implements the same one on Redis.

Times are in microseconds. Each rule divides its window into ``STEPS`` steps, and messages of one step count as
simultaneous. A message counts for the length of its window plus the rest of its step. No window of that length
therefore ever holds more messages than the limit, wherever the window begins. A burst is a token bucket: it holds
``burst`` messages, each message takes one, and the bucket refills at the rate of the rule. The bucket does not use
steps: a step of a day is longer than a small bucket takes to refill, and what does not fit into it would be lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from waooaw_celery.limits.rules import STEPS, Demand, Rule


@dataclass(slots=True)
class Window:
    """The count of one rule.

    Attributes:
        slots: Timestamps in steps, oldest first. Each stands for a group of messages and is that of its newest.
        group_size: Messages in each group except the newest.
        newest_group: Messages in the newest group.
        level: Level of the token bucket: a message takes ``period_us``, each microsecond adds ``limit``.
    """

    slots: list[int]
    group_size: int
    newest_group: int
    level: int

    @property
    def used(self) -> int:
        """Messages counted."""
        return (len(self.slots) - 1) * self.group_size + self.newest_group if self.slots else 0

    def count(self, step: int, n: int) -> None:
        """Count messages: fill the newest group, then start new ones."""
        if self.slots and self.newest_group < self.group_size:
            fill = min(self.group_size - self.newest_group, n)
            self.slots[-1] = step
            self.newest_group += fill
            n -= fill
        while n:
            self.newest_group = min(self.group_size, n)
            self.slots.append(step)
            n -= self.newest_group


@dataclass(slots=True)
class RateCounter:
    """The counts of all rules of one scope.

    Attributes:
        counted_at: Time of the last count.
        skew: Microseconds by which the clock was set back, in total. The time used here never goes back.
        windows: The count of each rule, by the length of its step.
    """

    counted_at: int = 0
    skew: int = 0
    windows: dict[int, Window] = field(default_factory=dict)

    def snapshot(self, rules: Sequence[Rule], time: int) -> Snapshot:
        """Return the counts at a time. Only a clock that was set back is noted; nothing is counted."""
        now = time + self.skew
        if self.windows and now < self.counted_at:
            self.skew += self.counted_at - now
            now = self.counted_at
        return Snapshot(now, [(rule, self._window(rule, now)) for rule in rules])

    def count(self, snapshot: Snapshot, n: int) -> None:
        """Add messages to the counts of a snapshot, and keep the result."""
        self.counted_at, self.windows = snapshot.now, {}
        for rule, window in snapshot.windows:
            window.count(snapshot.now // rule.step_us, n)
            window.level -= n * rule.period_us if rule.burst else 0
            self.windows[rule.step_us] = window

    def _window(self, rule: Rule, now: int) -> Window:
        full = (rule.burst or 0) * rule.period_us
        old = self.windows.get(rule.step_us)
        if old is None:
            return Window([], rule.group_size, 0, full)
        step, first = now // rule.step_us, 0
        while first < len(old.slots) and step - old.slots[first] > STEPS:
            first += 1
        level = min(full, old.level + (now - self.counted_at) * rule.limit)
        if first == len(old.slots):
            return Window([], rule.group_size, 0, level)
        if rule.group_size <= old.group_size:  # smaller groups begin when the window is empty
            return Window(old.slots[first:], old.group_size, old.newest_group, level)
        fresh = Window([], rule.group_size, 0, level)
        for number, slot in enumerate(old.slots[first:], first + 1):
            fresh.count(slot, old.newest_group if number == len(old.slots) else old.group_size)
        return fresh


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counts of one scope at one time.

    Attributes:
        now: The time, corrected for a clock that was set back.
        windows: The rules, each with its count.
    """

    now: int
    windows: list[tuple[Rule, Window]]

    def waits(self, demand: Demand, reserve: int) -> list[int | None]:
        """Return the microseconds that a demand must wait for each rule; 0: it passes; None: it never passes.

        Args:
            demand: The number of messages.
            reserve: The share reserved for URGENT messages, in thousandths.
        """
        return [self._wait(rule, window, demand, reserve) for rule, window in self.windows]

    def _wait(self, rule: Rule, window: Window, demand: Demand, reserve: int) -> int | None:
        wait = self._wait_for(rule, window, demand.n, rule.limit, 0)
        if demand.non_urgent and reserve:
            limit, burst = rule.without_reserve(reserve)
            reserved = (rule.burst or 0) - burst
            non_urgent = self._wait_for(rule, window, demand.non_urgent, limit, reserved)
            wait = None if wait is None or non_urgent is None else max(wait, non_urgent)
        return wait

    def _wait_for(self, rule: Rule, window: Window, n: int, limit: int, reserved: int) -> int | None:
        """Return the wait of messages that may use this limit and must leave ``reserved`` in the bucket."""
        if n > limit or (rule.burst and n > rule.burst - reserved):
            return None
        wait = 0
        excess = window.used + n - limit
        if excess > 0:
            wait = (window.slots[-(-excess // window.group_size) - 1] + STEPS + 1) * rule.step_us - self.now
        if rule.burst:
            missing = (n + reserved) * rule.period_us - window.level
            wait = max(wait, -(-missing // rule.limit))
        return wait
