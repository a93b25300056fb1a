"""Writes a conversation as a tree of causes, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from waooaw_celery.maintenance.diagrams.model import Arrow, ArrowKind, ConversationDiagram
from waooaw_celery.maintenance.diagrams.text import (
    ARROW,
    MARKS,
    TIMES,
    duration,
    outcome,
    route,
    short_error,
    timing,
)
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.wording import counted


class _Strokes(NamedTuple):
    branch: str
    last: str
    through: str
    space: str


_UNICODE = _Strokes("\u251c\u2500 ", "\u2514\u2500 ", "\u2502  ", "   ")
#: What a terminal must print for the tree of an ordinary conversation.
STROKES = "".join((*_UNICODE, ARROW, TIMES, *MARKS.values()))
_ASCII = _Strokes("|- ", "`- ", "|  ", "   ")


def tree(diagram: ConversationDiagram, *, ascii_only: bool = False) -> Iterator[str]:
    """Yield the lines of a tree: each message below the message whose handler sent it.

    The recorded answer of a request has no line of its own: the line of the request says that it was answered. The
    lines are not escaped: print them with ``cli.output.echo``.

    Args:
        diagram: the conversation.
        ascii_only: draw the branches with ASCII characters, for a terminal that has no others.

    Example:
        >>> print(*tree(diagram_of(records)), sep="\\n")
    """
    yield summary(diagram)
    strokes = _ASCII if ascii_only else _UNICODE
    arrows = {arrow.message_id: arrow for arrow in diagram.arrows}
    children: dict[str | None, list[Arrow]] = {}
    for arrow in diagram.arrows:
        children.setdefault(arrow.cause_id if arrow.cause_id in arrows else None, []).append(arrow)
    silent = {arrow.message_id for arrow in diagram.arrows if _is_silent(arrow, arrows, children)}
    shown = {
        cause: [arrow for arrow in below if arrow.message_id not in silent] for cause, below in children.items()
    }
    # A chain of causes may be longer than Python's stack is deep.
    stack: list[tuple[Arrow, str, bool | None]] = [(arrow, "", None) for arrow in reversed(shown.get(None, []))]
    while stack:
        arrow, indent, is_last = stack.pop()
        stroke = "" if is_last is None else strokes.last if is_last else strokes.branch
        mark = "" if ascii_only else f"{MARKS[arrow.status]} "
        line = f"{indent}{stroke}{mark}{_line(arrow, diagram, arrow.answer_id in silent)}"
        yield line.replace(ARROW, "->").replace(TIMES, "x") if ascii_only else line
        below = shown.get(arrow.message_id, [])
        deeper = indent + ("" if is_last is None else strokes.space if is_last else strokes.through)
        stack += [(each, deeper, number == 0) for number, each in enumerate(reversed(below))]


def summary(diagram: ConversationDiagram) -> str:
    """Return a conversation in one line: how many messages, how long, and what went wrong."""
    parts = [
        counted(diagram.messages, "message"),
        counted(diagram.agents, "agent"),
        duration(diagram.seconds),
        f"{diagram.failures} not handled" if diagram.failures else "",
        f"{diagram.open} open" if diagram.open else "",
        ("1 retry" if diagram.retries == 1 else f"{diagram.retries} retries") if diagram.retries else "",
    ]
    return f"Conversation {diagram.conversation_id}: {', '.join(part for part in parts if part)}"


def _is_silent(arrow: Arrow, arrows: dict[str, Arrow], children: dict[str | None, list[Arrow]]) -> bool:
    """Whether an arrow is the recorded answer that the line of its request mentions."""
    request = arrows.get(arrow.cause_id or "")
    is_record = arrow.kind is ArrowKind.ANSWER and arrow.status is MessageStatus.ANSWERED
    return (
        is_record
        and request is not None
        and request.answer_id == arrow.message_id
        and (arrow.message_id not in children)
    )


def _line(arrow: Arrow, diagram: ConversationDiagram, is_answered: bool) -> str:
    number = f" {TIMES}{arrow.count}" if arrow.is_folded else ""
    kind = "workflow " if arrow.kind is ArrowKind.WORKFLOW else ""
    facts = [outcome(arrow), "answered" if is_answered else "", timing(arrow), short_error(arrow.error)]
    return f"{kind}{route(arrow, diagram)}{number}: {', '.join(x for x in facts if x)}  {arrow.message_id}"
