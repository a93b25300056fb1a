"""Makes a large diagram small: several messages become one arrow, several participants one lifeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from waooaw_celery.maintenance.diagrams.model import (
    WORST_FIRST,
    Arrow,
    ConversationDiagram,
    Participant,
    ParticipantKind,
)
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.messages.wording import counted

#: Most lifelines of a picture, so that it can be read from left to right.
MAX_PARTICIPANTS = 24
_RANKS = {status: rank for rank, status in enumerate(WORST_FIRST)}


def fold(
    diagram: ConversationDiagram, max_arrows: int, max_participants: int = MAX_PARTICIPANTS
) -> ConversationDiagram:
    """Return the diagram with at most this many arrows and participants.

    Messages with the same sender, recipient and handler that were sent in one slice of time become one arrow. The
    slices are as short as the number of arrows allows. If one slice is still too many, the handler does not count,
    and then the participants that have the fewest messages become one.

    Args:
        diagram: the diagram; it may have folded arrows.
        max_arrows: most arrows, 1 or more.
        max_participants: most participants, 2 or more.
    """
    lifelines = max_participants
    diagram = _with_fewer_participants(diagram, lifelines)
    if len(diagram.arrows) <= max_arrows:
        return diagram
    while True:
        for by_handler in (True, False):
            slices = max_arrows if by_handler else 1
            while slices >= 1:
                groups = _groups(diagram, slices, by_handler=by_handler)
                if len(groups) <= max_arrows:
                    arrows = tuple(_merged(group, by_handler=by_handler) for group in groups)
                    return replace(diagram, arrows=arrows)
                slices //= 2
        lifelines //= 2
        diagram = _with_fewer_participants(diagram, lifelines)


def _groups(diagram: ConversationDiagram, slices: int, *, by_handler: bool) -> list[list[Arrow]]:
    width = max(diagram.seconds, 1e-6) / slices
    groups: dict[Hashable, list[Arrow]] = {}
    for arrow in diagram.arrows:
        number = min(int((arrow.sent_at - diagram.began_at).total_seconds() / width), slices - 1)
        handler = (arrow.label, arrow.kind) if by_handler else None
        groups.setdefault((number, arrow.source, arrow.target, handler), []).append(arrow)
    return list(groups.values())


def _merged(arrows: Sequence[Arrow], *, by_handler: bool) -> Arrow:
    if len(arrows) == 1:
        return arrows[0]
    worst = min(arrows, key=lambda arrow: _RANKS[arrow.status])
    statuses: Counter[MessageStatus] = Counter()
    for arrow in arrows:
        statuses.update(dict(arrow.by_status) if arrow.by_status else {arrow.status: 1})
    labels = {arrow.label for arrow in arrows}
    ended = [arrow.finished_at for arrow in arrows]
    return replace(
        worst,
        from_agent=_common(arrow.from_agent for arrow in arrows),
        to_agent=_common(arrow.to_agent for arrow in arrows),
        label=worst.label if by_handler or len(labels) == 1 else counted(len(labels), "handler"),
        sent_at=min(arrow.sent_at for arrow in arrows),
        delivered_at=_first(arrow.delivered_at for arrow in arrows),
        finished_at=max((time for time in ended if time is not None), default=None) if None not in ended else None,
        expires_at=None,
        waiting_seconds=_longest(arrow.waiting_seconds for arrow in arrows),
        handling_seconds=_longest(arrow.handling_seconds for arrow in arrows),
        attempts=(),
        retries=sum(arrow.retries for arrow in arrows),
        cancel_requested_at=_first(arrow.cancel_requested_at for arrow in arrows),
        cause_id=None,
        answer_id=None,
        depth=min(arrow.depth for arrow in arrows),
        count=sum(arrow.count for arrow in arrows),
        by_status=tuple((status, statuses[status]) for status in WORST_FIRST if statuses[status]),
    )


def _with_fewer_participants(diagram: ConversationDiagram, limit: int) -> ConversationDiagram:
    """Return the diagram with the busiest participants; all others are one, in the last place."""
    if len(diagram.participants) <= max(limit, 1):
        return diagram
    messages: Counter[int] = Counter()
    for arrow in diagram.arrows:
        messages[arrow.source] += arrow.count
        messages[arrow.target] += arrow.count
    kept = sorted(number for number, _ in messages.most_common(max(limit - 1, 0)))
    places = {number: place for place, number in enumerate(kept)}
    rest = [each for number, each in enumerate(diagram.participants) if number not in places]
    count = sum(each.count for each in rest)
    others = Participant(name=f"{count} others" if kept else f"{count} participants", count=count, kind=_OTHERS)
    return replace(
        diagram,
        participants=(*(diagram.participants[number] for number in kept), others),
        arrows=tuple(
            replace(arrow, source=places.get(arrow.source, len(kept)), target=places.get(arrow.target, len(kept)))
            for arrow in diagram.arrows
        ),
    )


_OTHERS = ParticipantKind.OTHERS


def _common(names: Iterable[str]) -> str:
    found = set(names)
    return found.pop() if len(found) == 1 else ""


def _first(times: Iterable[datetime | None]) -> datetime | None:
    return min((time for time in times if time is not None), default=None)


def _longest(seconds: Iterable[float | None]) -> float | None:
    return max((each for each in seconds if each is not None), default=None)
