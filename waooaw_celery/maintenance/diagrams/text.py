"""The texts of the pictures: durations, statuses, and a message in one sentence."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

from rich.cells import cell_len

from waooaw_celery.maintenance.diagrams.model import Arrow, ArrowKind, ConversationDiagram, ParticipantKind
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.wording import counted

#: A mark before the word of each status; the word alone says it too.
MARKS = {
    MessageStatus.PENDING: "\N{HORIZONTAL ELLIPSIS}",
    MessageStatus.SENT: "\N{HORIZONTAL ELLIPSIS}",
    MessageStatus.DELIVERED: "\N{BLACK RIGHT-POINTING SMALL TRIANGLE}",
    MessageStatus.HANDLED: "\N{CHECK MARK}",
    MessageStatus.ANSWERED: "\N{CHECK MARK}",
    MessageStatus.PUBLISHED: "\N{CHECK MARK}",
    MessageStatus.FAILED: "\N{MULTIPLICATION X}",
    MessageStatus.DEAD: "\N{DAGGER}",
    MessageStatus.EXPIRED: "\N{WHITE CIRCLE WITH UPPER RIGHT QUADRANT}",
    MessageStatus.CANCELLED: "\N{CIRCLED DIVISION SLASH}",
}
#: The words for the statuses that are not plain.
_WORDS = {
    MessageStatus.PENDING: "pending",
    MessageStatus.SENT: "waiting",
    MessageStatus.DELIVERED: "running",
    MessageStatus.DEAD: "dead letter",
}
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
ARROW = "\N{RIGHTWARDS ARROW}"
TIMES = "\N{MULTIPLICATION SIGN}"
#: Longest part of an error that a line shows, in characters.
MAX_ERROR = 100


def status_word(status: MessageStatus) -> str:
    """Return the word for a status, such as ``dead letter``."""
    return _WORDS.get(status, status.value)


def status_text(status: MessageStatus) -> str:
    """Return the mark and the word of a status."""
    return f"{MARKS[status]} {status_word(status)}"


def duration(seconds: float) -> str:
    """Return a duration in the unit that fits it.

    Example:
        >>> duration(0.0123), duration(75)
        ('12 ms', '1 min 15 s')
    """
    if seconds < 0.0005:
        return "0 ms" if seconds <= 0 else "<1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller, small_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{whole} s"


def offset(seconds: float) -> str:
    """Return a time since the beginning; after a minute as days, hours, minutes and seconds, so that two differ.

    Example:
        >>> offset(0.06), offset(90_061.5)
        ('+60 ms', '+1 d 01:01:01.5')
    """
    if seconds <= 0:
        return "0"
    if seconds < 59.95:
        return f"+{duration(seconds)}"
    tenths = round(seconds * 10)
    days, rest = divmod(tenths, 864_000)
    hours, rest = divmod(rest, 36_000)
    minutes, rest = divmod(rest, 600)
    clock = f"{hours:02}:{minutes:02}:{rest / 10:04.1f}" if days or hours else f"{minutes}:{rest / 10:04.1f}"
    return f"+{days} d {clock}" if days else f"+{clock}"


def moment(at: datetime) -> str:
    """Return a time in UTC, to the millisecond."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"


def route(arrow: Arrow, diagram: ConversationDiagram) -> str:
    """Return where a message goes, such as ``boss → worker.command`` or ``boss → topic order.created``."""
    source, target = diagram.participants[arrow.source], diagram.participants[arrow.target]
    sender = arrow.from_agent or source.name
    if arrow.kind is ArrowKind.EVENT:
        return f"{sender} {ARROW} topic {arrow.label}"
    if target.kind is ParticipantKind.OTHERS and not arrow.to_agent:
        return f"{sender} {ARROW} {target.name}: {arrow.label}"
    if arrow.kind is ArrowKind.ANSWER and arrow.label == "answer":
        return f"{sender} {ARROW} {arrow.to_agent or target.name}: answer"
    return f"{sender} {ARROW} {arrow.to_agent or target.name}.{arrow.label}"


def label_of(arrow: Arrow) -> str:
    """Return the handler, the topic or ``answer``; a message of a workflow says that it is one."""
    if arrow.kind is ArrowKind.WORKFLOW:
        return f"workflow {arrow.label.removeprefix('workflow_')}"
    return arrow.label


def timing(arrow: Arrow) -> str:
    """Return how long a message waited and was handled, and its retries; empty if nothing is known."""
    most = "up to " if arrow.is_folded else ""
    parts = []
    if arrow.waiting_seconds is not None:
        parts.append(f"waited {most}{duration(arrow.waiting_seconds)}")
    if arrow.handling_seconds is not None:
        parts.append(f"ran {most}{duration(arrow.handling_seconds)}")
    if arrow.retries:
        parts.append("1 retry" if arrow.retries == 1 else f"{arrow.retries} retries")
    return ", ".join(parts)


def outcome(arrow: Arrow) -> str:
    """Return the status of an arrow; of a folded one, how many messages have each status."""
    if arrow.is_folded:
        return ", ".join(f"{count} {status_word(status)}" for status, count in arrow.by_status)
    return status_word(arrow.status)


def sentence(arrow: Arrow, diagram: ConversationDiagram) -> str:
    """Return everything about an arrow in one line, for a tooltip and for screen readers."""
    number = f"{counted(arrow.count, 'message')}, " if arrow.is_folded else ""
    parts = [f"{number}{route(arrow, diagram)}: {outcome(arrow)}", f"sent {moment(arrow.sent_at)}"]
    parts += [part for part in (timing(arrow), short_error(arrow.error)) if part]
    if not arrow.is_folded:
        parts.append(f"id {arrow.message_id}")
    return "; ".join(parts)


def short_error(error: str | None, limit: int = MAX_ERROR) -> str:
    """Return an error as one line, cut to some characters."""
    return shortened(" ".join((error or "").split()), limit)


def shortened(text: str, cells: int) -> str:
    """Return a text that takes at most this many columns of a font of fixed width; what is cut is an ellipsis."""
    if len(text) <= cells and text.isascii():
        return text
    if cell_len(text[: 2 * cells + 2]) <= cells and len(text) <= cells:
        return text
    kept, used = [], 1
    for char in text:
        used += cell_len(char)
        if used > cells:
            break
        kept.append(char)
    return "".join(kept) + ELLIPSIS


def printable(text: str) -> str:
    """Return a text without what a picture cannot show: control characters, marks of direction, lone surrogates.

    Each of them becomes one replacement character, so that nothing vanishes unseen.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if _shows(char) else "\N{REPLACEMENT CHARACTER}" for char in text)


def _shows(char: str) -> bool:
    # Cc: control; Cf: formats, such as marks of direction; Cs: surrogates; Cn: among others U+FFFE, not in XML.
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")
