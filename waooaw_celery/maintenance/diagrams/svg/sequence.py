"""Draws a conversation as a sequence diagram: a lifeline for each participant, an arrow for each message."""

from __future__ import annotations

from collections.abc import Mapping

from rich.cells import cell_len

from waooaw_celery.maintenance.diagrams.model import (
    Arrow,
    ArrowKind,
    ConversationDiagram,
    Participant,
    ParticipantKind,
)
from waooaw_celery.maintenance.diagrams.svg.elements import (
    CHARACTER_WIDTH,
    SIZES,
    Link,
    columns,
    document,
    element,
    linked,
    text,
    title,
)
from waooaw_celery.maintenance.diagrams.text import (
    TIMES,
    duration,
    label_of,
    offset,
    outcome,
    printable,
    sentence,
    status_text,
)
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.wording import counted

#: Pixels: a row, a box with a name, the margins, and the space between two boxes.
ROW, BOX, MARGIN, GAP = 50, 34, 12, 18
#: Pixels: the widths of a box, the longest label that moves lifelines apart, and what a loop has beside its label.
MIN_BOX, MAX_BOX, MAX_LABEL, LOOP = 84.0, 236.0, 260.0, 56.0
#: How far from the sender a label reaches at most, in pixels.
LABEL_REACH = 330.0
#: After so many rows the names are shown again.
ROWS_BETWEEN_NAMES = 14
#: The half width of the bar of a running handler.
_ACTIVE = 4
_STATUS_CLASSES = {
    MessageStatus.FAILED: "wd-bad",
    MessageStatus.DEAD: "wd-bad",
    MessageStatus.EXPIRED: "wd-warn",
    MessageStatus.CANCELLED: "wd-warn",
    MessageStatus.PENDING: "wd-open",
    MessageStatus.SENT: "wd-open",
    MessageStatus.DELIVERED: "wd-open",
}


def sequence_svg(diagram: ConversationDiagram, *, link: Link | None = None) -> str:
    """Return the sequence diagram of a conversation as SVG.

    It has no styles, no scripts and no ids: the page needs ``DIAGRAM_CSS``, and may have several pictures.

    Args:
        diagram: the conversation.
        link: returns the URL of a message by its id, or None for a message without one. None: there is no link.

    Example:
        >>> sequence_svg(diagram_of(records), link=lambda message_id: f"/messages/{quote(message_id)}")
    """
    return _Drawing(diagram, link).picture()


def status_class(status: MessageStatus) -> str:
    """Return the class that gives a status its colour."""
    return _STATUS_CLASSES.get(status, "wd-good")


class _Drawing:
    def __init__(self, diagram: ConversationDiagram, link: Link | None) -> None:
        self._diagram = diagram
        self._link = link
        self._names = [_name(each) for each in diagram.participants]
        self._box_widths = [min(max(_pixels(name, "wd-name") + 24, MIN_BOX), MAX_BOX) for name in self._names]
        self._offsets = [offset((each.sent_at - diagram.began_at).total_seconds()) for each in diagram.arrows]
        self._times_width = MARGIN + max(_pixels(each, "wd-time") for each in self._offsets) + 16
        self._places, self._width = self._lifelines()
        self._rows, self._repeats, self._end = _rows(len(diagram.arrows))

    def picture(self) -> str:
        """Return the whole picture."""
        diagram = self._diagram
        height = self._end + BOX + MARGIN
        shown = counted(diagram.messages, "message")
        folded = f", folded into {counted(len(diagram.arrows), 'arrow')}" if diagram.is_folded else ""
        failed = f"; {diagram.failures} not handled" if diagram.failures else ""
        return document(
            f"Sequence of conversation {diagram.conversation_id}",
            f"{shown}{folded} between {counted(len(diagram.participants), 'participant')} in "
            f"{duration(diagram.seconds)}{failed}. Time runs downwards. Each arrow is a message, with its status.",
            self._width,
            height,
            *self._bands(),
            *(self._lifeline(number, height) for number in range(len(self._names))),
            *self._active_bars(),
            *(self._row(number) for number in range(len(diagram.arrows))),
            *(box for y in (MARGIN, *self._repeats, self._end) for box in self._boxes(y)),
            has_links=self._link is not None,
        )

    def _x(self, participant: int) -> float:
        return self._places[participant]

    def _lifelines(self) -> tuple[list[float], float]:
        """Return where each lifeline is, and the width of the picture: as close as names and labels allow."""
        boxes = self._box_widths
        # What is to the right of each lifeline: half of both boxes, a label to its neighbour, or that of a loop.
        room = [one / 2 + GAP + other / 2 for one, other in zip(boxes, [*boxes[1:], 0.0], strict=True)]
        room[-1] = boxes[-1] / 2 + MARGIN
        for arrow in self._diagram.arrows:
            label, note = _written(arrow)
            needed = min(max(_pixels(label, "wd-label"), _pixels(note, "wd-note")), MAX_LABEL)
            if arrow.source == arrow.target:
                room[arrow.source] = max(room[arrow.source], needed + LOOP)
            elif abs(arrow.source - arrow.target) == 1:
                left = min(arrow.source, arrow.target)
                room[left] = max(room[left], needed + 44)
        places = [self._times_width + boxes[0] / 2]
        for width in room[:-1]:
            places.append(places[-1] + width)
        return places, places[-1] + room[-1]

    def _bands(self) -> list[str]:
        return [
            element("rect", x=0, y=y - 24, width=self._width, height=ROW - 2, class_="wd-bad-band")
            for y, arrow in zip(self._rows, self._diagram.arrows, strict=True)
            if arrow.went_wrong
        ]

    def _lifeline(self, number: int, height: float) -> str:
        x = self._x(number)
        return element("line", x1=x, y1=MARGIN + BOX, x2=x, y2=height - MARGIN - BOX, class_="wd-lifeline")

    def _boxes(self, y: float) -> list[str]:
        boxes = []
        for number, participant in enumerate(self._diagram.participants):
            x, width = self._x(number), self._box_widths[number]
            kind = "" if participant.kind is ParticipantKind.AGENT else f" wd-{participant.kind.value}"
            round_ = BOX / 2 if participant.kind is ParticipantKind.TOPIC else 5
            rect = element(
                "rect", x=x - width / 2, y=y, width=width, height=BOX, rx=round_, class_=f"wd-box{kind}"
            )
            cells = columns(width - 20, "wd-name")
            label = text(self._names[number], x, y + 21.5, "wd-name", cells=cells, text_anchor="middle")
            boxes.append(element("g", title(self._names[number]), rect, label))
        return boxes

    def _active_bars(self) -> list[str]:
        """Return the bars on the lifelines, from the message that a handler got to the last one that it sent."""
        arrows = self._diagram.arrows
        number_of: Mapping[str, int] = {arrow.message_id: number for number, arrow in enumerate(arrows)}
        last: dict[int, int] = {}
        for number, arrow in enumerate(arrows):
            cause = number_of.get(arrow.cause_id or "")
            if cause is not None and not arrow.is_folded and arrow.source == arrows[cause].target:
                last[cause] = number
        bars = []
        for number, end in last.items():
            arrow = arrows[number]
            if arrow.is_folded or arrow.kind is ArrowKind.EVENT:
                continue
            shift = _ACTIVE if arrow.source == arrow.target else 0
            x, y = self._x(arrow.target) - _ACTIVE + shift, self._rows[number]
            height = max(self._rows[end] - y, 8)
            bars.append(element("rect", x=x, y=y, width=2 * _ACTIVE, height=height, class_="wd-active"))
        return bars

    def _row(self, number: int) -> str:
        arrow, y = self._diagram.arrows[number], self._rows[number]
        time = text(self._offsets[number], self._times_width - 16, y + 4, "wd-time", text_anchor="end")
        parts = self._loop(arrow, y) if arrow.source == arrow.target else self._line(arrow, y)
        url = None if self._link is None else self._link(arrow.message_id)
        class_ = f"{status_class(arrow.status)}{' wd-wrong' if arrow.went_wrong else ''}"
        group = element("g", title(sentence(arrow, self._diagram)), time, *parts, class_=class_)
        return linked(group, url)

    def _line(self, arrow: Arrow, y: float) -> list[str]:
        begin, end = self._x(arrow.source), self._x(arrow.target)
        way = 1 if end > begin else -1
        begin, end = begin + way * _ACTIVE, end - way * _ACTIVE
        line = element("path", d=f"M{begin:.1f} {y}H{end - way * 2:.1f}", fill="none", class_=_arrow_class(arrow))
        # The label of a long arrow stands near its sender, where a reader who scrolls sees both.
        length = min(abs(end - begin), LABEL_REACH)
        middle, room = begin + way * length / 2, length - 20
        return [line, _head(arrow, end, y, way), *_texts(arrow, middle, y, room, "middle")]

    def _loop(self, arrow: Arrow, y: float) -> list[str]:
        x = self._x(arrow.source) + _ACTIVE
        path = f"M{x:.1f} {y - 7}h22a7 7 0 0 1 0 14h-20"
        line = element("path", d=path, fill="none", class_=_arrow_class(arrow))
        return [
            line,
            _head(arrow, x, y + 7, -1),
            *_texts(arrow, x + 36, y, self._loop_room(arrow), "start"),
        ]

    def _loop_room(self, arrow: Arrow) -> float:
        number = arrow.source
        right = self._places[number + 1] if number + 1 < len(self._places) else self._width
        return right - self._places[number] - LOOP + 12


def _rows(count: int) -> tuple[list[float], list[float], float]:
    """Return where each row is, where the names are repeated, and where they are shown for the last time."""
    rows: list[float] = []
    repeats: list[float] = []
    y = float(MARGIN + BOX + 34)
    for number in range(count):
        if number and number % ROWS_BETWEEN_NAMES == 0 and count - number > ROWS_BETWEEN_NAMES // 2:
            repeats.append(y - 22)
            y += BOX + 20
        rows.append(y)
        y += ROW
    return rows, repeats, y - 14


def _pixels(content: str, class_: str) -> float:
    return cell_len(printable(content)) * SIZES[class_] * CHARACTER_WIDTH


def _written(arrow: Arrow) -> tuple[str, str]:
    """Return what stands above an arrow, and what stands below it."""
    label = label_of(arrow) + (f" {TIMES}{arrow.count}" if arrow.is_folded else "")
    note = outcome(arrow) if arrow.is_folded and len(arrow.by_status) > 1 else status_text(arrow.status)
    if arrow.handling_seconds is not None:
        at_most = "\N{LESS-THAN OR EQUAL TO}" if arrow.is_folded else ""
        note += f" {at_most}{duration(arrow.handling_seconds)}"
    if arrow.retries:
        note += f" \N{CLOCKWISE OPEN CIRCLE ARROW}{arrow.retries}"
    return label, note


def _texts(arrow: Arrow, x: float, y: float, room: float, anchor: str) -> list[str]:
    label, note = _written(arrow)
    up, down = (-7, 15) if anchor == "middle" else (-2, 13)
    cells, note_cells = columns(room, "wd-label"), columns(room, "wd-note")
    above = text(label, x, y + up, "wd-label wd-over", cells=cells, text_anchor=anchor)
    below = text(note, x, y + down, "wd-note wd-status wd-over", cells=note_cells, text_anchor=anchor)
    return [above, below]


def _arrow_class(arrow: Arrow) -> str:
    dashed = " wd-dashed" if arrow.kind is ArrowKind.ANSWER else ""
    return f"wd-arrow{dashed}{' wd-folded' if arrow.is_folded else ''}"


def _head(arrow: Arrow, x: float, y: float, way: int) -> str:
    back = x - way * 9
    if arrow.kind in (ArrowKind.EVENT, ArrowKind.DELIVERY, ArrowKind.ANSWER):
        path = f"M{back:.1f} {y - 5}L{x:.1f} {y}L{back:.1f} {y + 5}"
        return element("path", d=path, fill="none", class_="wd-head wd-open-head")
    return element("path", d=f"M{back:.1f} {y - 5}L{x:.1f} {y}L{back:.1f} {y + 5}Z", class_="wd-head")


def _name(participant: Participant) -> str:
    return f"topic {participant.name}" if participant.kind is ParticipantKind.TOPIC else participant.name
