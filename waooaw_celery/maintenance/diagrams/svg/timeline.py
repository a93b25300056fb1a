"""Draws a conversation as a timeline: a row for each message, with bars for its waiting and its attempts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from waooaw_celery.maintenance.diagrams.model import Arrow, ArrowKind, ConversationDiagram
from waooaw_celery.maintenance.diagrams.svg.elements import (
    SIZES,
    Link,
    columns,
    document,
    element,
    linked,
    text,
    title,
)
from waooaw_celery.maintenance.diagrams.svg.sequence import status_class
from waooaw_celery.maintenance.diagrams.svg.time_scale import TimeScale
from waooaw_celery.maintenance.diagrams.text import (
    MARKS,
    TIMES,
    duration,
    offset,
    route,
    sentence,
    status_word,
    timing,
)
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.wording import counted

#: Pixels: the column of names, the bars, the column of outcomes, a row, the legend, the axis, the margin.
NAMES, PLOT, OUTCOMES, ROW, LEGEND, AXIS, MARGIN = 310, 450, 376, 26, 30, 24, 12
#: Pixels of the mark of a status.
MARK = 16
#: Pixels of each level of the tree of causes, and how many levels are shown.
_INDENT, _MAX_DEPTH = 10, 8
#: The narrowest bar, and the least distance of two labels of the axis.
_MIN_BAR, _TICK = 2.5, 84
_PLAIN_KINDS = frozenset({MessageStatus.PUBLISHED, MessageStatus.ANSWERED})
_BAD_OUTCOMES = frozenset({"retried", "failed", "dead", "lost"})


def timeline_svg(diagram: ConversationDiagram, *, link: Link | None = None) -> str:
    """Return the timeline of a conversation as SVG.

    It has no styles, no scripts and no ids, as ``sequence_svg``.

    Args:
        diagram: the conversation.
        link: returns the URL of a message by its id, or None for a message without one. None: there is no link.

    Example:
        >>> timeline_svg(diagram_of(records))
    """
    return _Drawing(diagram, link).picture()


class _Drawing:
    def __init__(self, diagram: ConversationDiagram, link: Link | None) -> None:
        self._diagram = diagram
        self._link = link
        spans = [(self._at(arrow.sent_at), self._at(self._end(arrow))) for arrow in diagram.arrows]
        self._scale = TimeScale(spans, PLOT)
        self._top = MARGIN + LEGEND + AXIS
        self._bottom = self._top + ROW * len(diagram.arrows)
        self._has_long_axis = len(diagram.arrows) > 20

    def picture(self) -> str:
        """Return the whole picture."""
        diagram = self._diagram
        cut = " Pauses in which nothing happens are cut out." if self._scale.cuts else ""
        folded = " An arrow with a number stands for several messages." if diagram.is_folded else ""
        return document(
            f"Timeline of conversation {diagram.conversation_id}",
            f"{counted(diagram.messages, 'message')} in {duration(diagram.seconds)}, a row for each, in order of "
            f"time: a dashed bar while it waits, a full bar for each attempt.{folded}{cut}",
            NAMES + PLOT + OUTCOMES + 2 * MARGIN,
            self._bottom + (AXIS if self._has_long_axis else 0) + MARGIN,
            *_legend(),
            *self._bands(),
            *self._axis(),
            *(self._row(number, arrow) for number, arrow in enumerate(diagram.arrows)),
            has_links=self._link is not None,
        )

    def _at(self, time: datetime) -> float:
        return (time - self._diagram.began_at).total_seconds()

    def _end(self, arrow: Arrow) -> datetime:
        """Return when the bars of an arrow end; those of an open message go on to the end of the picture."""
        is_open = not arrow.is_folded and not arrow.status.final
        return self._diagram.ended_at if is_open else arrow.ends_at

    def _x(self, time: datetime) -> float:
        return MARGIN + NAMES + self._scale.place(self._at(time))

    def _bands(self) -> Iterator[str]:
        width = NAMES + PLOT + OUTCOMES + 2 * MARGIN
        for number, arrow in enumerate(self._diagram.arrows):
            class_ = "wd-bad-band" if arrow.went_wrong else "wd-band" if number % 2 else None
            if class_ is not None:
                yield element("rect", x=0, y=self._top + ROW * number, width=width, height=ROW, class_=class_)

    def _axis(self) -> Iterator[str]:
        left = MARGIN + NAMES
        ends = [self._top - 8]
        if self._has_long_axis:
            ends.append(self._bottom + 16)
        for tick in self._scale.ticks(_TICK):
            x = left + self._scale.place(tick)
            yield element("line", x1=x, y1=self._top, x2=x, y2=self._bottom, class_="wd-grid")
            label = offset(tick)
            is_after_cut = any(tick == end for _, end in self._scale.cuts)
            anchor = "start" if is_after_cut or x < left + 20 else "end" if x > left + PLOT - 20 else "middle"
            for y in ends:
                yield text(label, x, y, "wd-time", text_anchor=anchor)
        for begin, end in self._scale.cuts:
            one, other = left + self._scale.place(begin), left + self._scale.place(end)
            for x in (one + 4, other - 4):
                yield element("line", x1=x, y1=self._top, x2=x, y2=self._bottom, class_="wd-cut")
            pause = f"Cut out: {duration(end - begin)} without a message"
            rect = element(
                "rect",
                x=one + 4,
                y=self._top,
                width=max(other - one - 8, 1),
                height=self._bottom - self._top,
                class_="wd-band",
            )
            yield element("g", title(pause), rect)

    def _row(self, number: int, arrow: Arrow) -> str:
        y = self._top + ROW * number + ROW / 2
        shift = _INDENT * min(arrow.depth, _MAX_DEPTH)
        name = route(arrow, self._diagram) + (f" {TIMES}{arrow.count}" if arrow.is_folded else "")
        cells = columns(NAMES - shift - MARK - 14, "wd-label")
        mark = text(MARKS[arrow.status], MARGIN + shift, y + 4, "wd-label wd-status")
        label = text(name, MARGIN + shift + MARK, y + 4, "wd-label", cells=cells)
        facts = [status_word(arrow.status), timing(arrow)]
        if arrow.is_folded and len(arrow.by_status) > 1:
            facts[0] += f" {dict(arrow.by_status)[arrow.status]} of {arrow.count}"
        note = ", ".join(fact for fact in facts if fact)
        x = MARGIN + NAMES + PLOT + 12
        outcome = text(note, x, y + 4, "wd-note wd-status", cells=columns(OUTCOMES - 12, "wd-note"))
        group = element(
            "g",
            title(sentence(arrow, self._diagram)),
            mark,
            label,
            *self._bars(arrow, y),
            outcome,
            class_=status_class(arrow.status),
        )
        return linked(group, None if self._link is None else self._link(arrow.message_id))

    def _bars(self, arrow: Arrow, y: float) -> Iterator[str]:
        if arrow.is_folded:
            yield self._bar(arrow.sent_at, self._end(arrow), y, 12, "wd-bar-fold")
            return
        if arrow.status in _PLAIN_KINDS or (arrow.kind is ArrowKind.EVENT and not arrow.attempts):
            x = self._x(arrow.sent_at)
            yield element("path", d=f"M{x:.1f} {y - 5}l5 5l-5 5l-5 -5Z", class_="wd-bar-run")
            return
        waits_from: datetime | None = arrow.sent_at
        for attempt in arrow.attempts:
            if waits_from is not None:
                yield self._bar(waits_from, attempt.began_at, y, 6, "wd-bar-wait")
            ended_at = attempt.ended_at or self._diagram.ended_at
            class_ = _bar_class(attempt.outcome)
            tip = f"attempt {attempt.number}: {attempt.outcome or 'running'}"
            seconds = f" after {duration(attempt.seconds)}" if attempt.seconds is not None else ""
            bar = self._bar(attempt.began_at, ended_at, y, 12, class_)
            yield element("g", title(f"{tip}{seconds}; {sentence(arrow, self._diagram)}"), bar)
            waits_from = attempt.ended_at
        if waits_from is not None and (arrow.finished_at is None or arrow.finished_at > waits_from):
            yield self._bar(waits_from, self._end(arrow), y, 6, "wd-bar-wait")
        yield from self._marks(arrow, y)

    def _bar(self, begin: datetime, end: datetime, y: float, height: float, class_: str) -> str:
        left, right = self._x(begin), self._x(end)
        if class_ == "wd-bar-wait" and right - left < 3:
            return ""
        width = max(right - left, _MIN_BAR)
        return element("rect", x=left, y=y - height / 2, width=width, height=height, rx=1.5, class_=class_)

    def _marks(self, arrow: Arrow, y: float) -> Iterator[str]:
        if arrow.cancel_requested_at is not None:
            x = self._x(arrow.cancel_requested_at)
            yield element(
                "g",
                title("cancellation requested"),
                element("path", d=f"M{x:.1f} {y - 10}v20", fill="none", class_="wd-mark-warn"),
            )
        end = self._x(arrow.finished_at or self._end(arrow))
        if arrow.status in (MessageStatus.FAILED, MessageStatus.DEAD):
            path = f"M{end - 5:.1f} {y - 5}l10 10m0 -10l-10 10"
            yield element("path", d=path, fill="none", class_="wd-mark-bad")
        if arrow.status is MessageStatus.DEAD:
            yield element("circle", cx=end, cy=y, r=8, fill="none", class_="wd-mark-bad")
        if arrow.status is MessageStatus.EXPIRED:
            path = f"M{end - 5:.1f} {y - 6}h10l-10 12h10Z"
            yield element("path", d=path, fill="none", class_="wd-mark-warn")
        if arrow.status is MessageStatus.CANCELLED:
            yield element("circle", cx=end, cy=y, r=6, fill="none", class_="wd-mark-warn")
            yield element("path", d=f"M{end - 4:.1f} {y + 4}l8 -8", fill="none", class_="wd-mark-warn")


def _bar_class(outcome: str | None) -> str:
    if outcome is None:
        return "wd-bar-open"
    if outcome == "cancelled":
        return "wd-bar-warn"
    return "wd-bar-bad" if outcome in _BAD_OUTCOMES else "wd-bar-run"


def _legend() -> Iterator[str]:
    """Return the legend: a bar or a mark, and its meaning."""
    x, y = float(MARGIN), MARGIN + 10.0
    bars = (
        ("waits", "wd-bar-wait", 6),
        ("is handled", "wd-bar-run", 12),
        ("failed attempt", "wd-bar-bad", 12),
        ("runs", "wd-bar-open", 12),
    )
    for meaning, class_, height in bars:
        yield element("rect", x=x, y=y - height / 2, width=22, height=height, rx=1.5, class_=class_)
        yield text(meaning, x + 28, y + 4, "wd-note")
        x += 28 + len(meaning) * SIZES["wd-note"] * 0.61 + 22
    marks = (
        ("event or answer", f"M{x + 6:.1f} {y - 5}l5 5l-5 5l-5 -5Z", "wd-bar-run"),
        ("failed", "M{0} {1}l10 10m0 -10l-10 10", "wd-mark-bad"),
        ("expired", "M{0} {2}h10l-10 12h10Z", "wd-mark-warn"),
    )
    for meaning, path, class_ in marks:
        d = path.format(f"{x + 1:.1f}", y - 5, y - 6)
        yield element("path", d=d, fill=None if class_ == "wd-bar-run" else "none", class_=class_)
        yield text(meaning, x + 18, y + 4, "wd-note")
        x += 18 + len(meaning) * SIZES["wd-note"] * 0.61 + 22
    yield element("circle", cx=x + 6, cy=y, r=8, fill="none", class_="wd-mark-bad")
    yield element("path", d=f"M{x + 1:.1f} {y - 5}l10 10m0 -10l-10 10", fill="none", class_="wd-mark-bad")
    yield text("dead letter", x + 20, y + 4, "wd-note")
    x += 20 + 11 * SIZES["wd-note"] * 0.61 + 22
    yield element("circle", cx=x + 6, cy=y, r=6, fill="none", class_="wd-mark-warn")
    yield element("path", d=f"M{x + 2:.1f} {y + 4}l8 -8", fill="none", class_="wd-mark-warn")
    yield text("cancelled", x + 18, y + 4, "wd-note")
