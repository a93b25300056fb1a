"""Writes a conversation as a sequence diagram in Mermaid, for pages that draw it themselves."""

from __future__ import annotations

import re

from waooaw_celery.maintenance.diagrams.folding import fold
from waooaw_celery.maintenance.diagrams.model import (
    Arrow,
    ArrowKind,
    ConversationDiagram,
    ParticipantKind,
)
from waooaw_celery.maintenance.diagrams.text import (
    TIMES,
    duration,
    label_of,
    outcome,
    printable,
    short_error,
    shortened,
)

#: The longest text that Mermaid draws unless its ``maxTextSize`` is set.
MAX_TEXT_SIZE = 50_000
#: The longest name of a participant, label and error, in characters.
_MAX_NAME, _MAX_LABEL, _MAX_ERROR = 60, 60, 80
#: What Mermaid takes as text wherever it stands; every other character is written as its number.
_PLAIN = re.compile(r"[A-Za-z0-9 _.,()\u00c0-\u024f\u0370-\u052f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af-]")
_END = re.compile(r"\bend\b", re.IGNORECASE)


def mermaid(diagram: ConversationDiagram, *, max_characters: int = MAX_TEXT_SIZE) -> str:
    """Return the sequence diagram of a conversation as Mermaid text.

    Args:
        diagram: the conversation. If its text is too long, its messages are folded.
        max_characters: the longest text.

    Example:
        >>> print(mermaid(diagram_of(records)))
        sequenceDiagram
        ...
    """
    written = _write(diagram)
    arrows = len(diagram.arrows)
    while len(written) > max_characters and arrows > 1:
        arrows = max(min(arrows * max_characters // len(written), arrows - 1), 1)
        written = _write(fold(diagram, arrows))
    return written


def mermaid_escaped(text: str) -> str:
    """Return a text of which Mermaid takes no character, and not the word ``end``, as a part of its language."""
    shown = printable(text)
    shown = _END.sub(lambda found: f"#{ord(found[0][0])};{found[0][1:]}", _Codes.written(shown))
    return shown.strip() or "#32;"


class _Codes:
    @staticmethod
    def written(text: str) -> str:
        return "".join(char if _PLAIN.fullmatch(char) else f"#{ord(char)};" for char in text)


def _write(diagram: ConversationDiagram) -> str:
    lines = ["sequenceDiagram"]
    for number, participant in enumerate(diagram.participants):
        topic = "topic " if participant.kind is ParticipantKind.TOPIC else ""
        name = mermaid_escaped(shortened(f"{topic}{participant.name}", _MAX_NAME))
        lines.append(f"    participant p{number} as {name}")
    lines += [_line(arrow) for arrow in diagram.arrows]
    return "\n".join(lines) + "\n"


def _line(arrow: Arrow) -> str:
    stroke = "--)" if arrow.kind is ArrowKind.ANSWER else "-)" if _is_event(arrow) else "->>"
    if arrow.went_wrong:
        stroke = "-x"
    number = f" {TIMES}{arrow.count}" if arrow.is_folded else ""
    facts = [outcome(arrow)]
    if arrow.handling_seconds is not None:
        facts[0] += f" {duration(arrow.handling_seconds)}"
    if arrow.retries:
        facts.append("1 retry" if arrow.retries == 1 else f"{arrow.retries} retries")
    facts.append(short_error(arrow.error, _MAX_ERROR))
    label = f"{shortened(label_of(arrow), _MAX_LABEL)}{number} ({', '.join(filter(None, facts))})"
    return f"    p{arrow.source}{stroke}p{arrow.target}: {mermaid_escaped(label)}"


def _is_event(arrow: Arrow) -> bool:
    return arrow.kind in (ArrowKind.EVENT, ArrowKind.DELIVERY)
