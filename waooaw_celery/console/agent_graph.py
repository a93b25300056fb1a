"""The agents as a graph: a circle of nodes, and an arrow for each pair that exchanges messages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from waooaw_celery.ledger.read.flows import Flow
from waooaw_celery.maintenance.top.frame import AgentLine, Attention

#: Most agents, and arrows, of the picture: those with the most messages.
MAX_NODES, MAX_ARROWS = 36, 120
#: Size of the picture, the radius of a node, and how far an arrow bends, in its units.
WIDTH, NODE_RADIUS = 900, 9
_MARGIN, _BEND = 150, 0.16
#: Longest name that is written whole, in characters.
_MAX_NAME = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An agent of the picture.

    Attributes:
        name: its name.
        label: the same, cut if it is long.
        x, y: its place.
        label_x, label_y, anchor: the place of its label.
        state: its class: ``ok``, ``warn``, ``bad`` or ``unknown``.
        attention: why it needs attention, or an empty text.
        is_agent: whether it is a known agent, with a page.
    """

    name: str
    label: str
    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str
    state: str
    attention: str
    is_agent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrow:
    """The messages from one agent to another.

    Attributes:
        flow: the counts.
        path: the arrow, as SVG writes it.
        width: its width.
        state: its class: ``ok``, ``warn`` (some failed) or ``bad`` (at least a tenth failed).
        rate: messages per second, as text.
    """

    flow: Flow
    path: str
    width: float
    state: str
    rate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The picture.

    Attributes:
        nodes: the agents.
        arrows: who sends to whom.
        height: its height.
        hidden: how many agents are left out.
    """

    nodes: Sequence[Node]
    arrows: Sequence[Arrow]
    height: int
    hidden: int


def graph_of(lines: Sequence[AgentLine], flows: Sequence[Flow], seconds: float) -> Graph:
    """Return the picture of some agents.

    Args:
        lines: the known agents.
        flows: who sends to whom.
        seconds: the time in which these messages were sent.
    """
    known = {line.name: line for line in lines}
    traffic: Counter[str] = Counter()
    for flow in flows:
        traffic[flow.from_agent] += flow.messages
        traffic[flow.to_agent] += flow.messages
    # First those that need attention: a busy fleet must not hide them.
    urgent = [line.name for line in lines if line.attention not in (Attention.NONE, Attention.HELD)]
    busy = [name for name, _ in traffic.most_common()]
    chosen = list(dict.fromkeys([*urgent, *busy, *known]))[:MAX_NODES]
    height = 420 if len(chosen) <= 12 else 620
    places = _circle(sorted(chosen), height)
    shown = [flow for flow in flows if flow.from_agent in places and flow.to_agent in places][:MAX_ARROWS]
    most = max((flow.messages for flow in shown), default=1)
    return Graph(
        nodes=[_node(name, places[name], known.get(name), height) for name in places],
        arrows=[_arrow(flow, places, most, seconds) for flow in shown],
        height=height,
        hidden=len({*known, *traffic}) - len(places),
    )


def _circle(names: Sequence[str], height: int) -> dict[str, tuple[float, float]]:
    """Return a place on an ellipse for each agent."""
    if len(names) == 1:
        return {names[0]: (WIDTH / 2, height / 2)}
    places: dict[str, tuple[float, float]] = {}
    for number, name in enumerate(names):
        angle = 2 * math.pi * number / len(names) - math.pi / 2
        across, down = WIDTH / 2 - _MARGIN, height / 2 - 50
        places[name] = WIDTH / 2 + across * math.cos(angle), height / 2 + down * math.sin(angle)
    return places


def _node(name: str, place: tuple[float, float], line: AgentLine | None, height: int) -> Node:
    x, y = place
    side = (x - WIDTH / 2) / (WIDTH / 2 - _MARGIN)
    anchor = "start" if side > 0.15 else "end" if side < -0.15 else "middle"
    if anchor == "middle":
        label_x, label_y = x, y + (26 if y > height / 2 else -16)
    else:
        label_x, label_y = x + (15 if anchor == "start" else -15), y + 5
    return Node(
        name=name,
        label=name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…",
        x=round(x, 1),
        y=round(y, 1),
        label_x=round(label_x, 1),
        label_y=round(label_y, 1),
        anchor=anchor,
        state=state_of(line),
        attention="not an agent" if line is None else str(line.attention),
        is_agent=line is not None,
    )


_BAD = (Attention.NO_WORKER, Attention.UNHEALTHY, Attention.BREAKER)


def state_of(line: AgentLine | None) -> str:
    """Return the class of an agent: ``ok``, ``warn``, ``bad``, or ``unknown`` if nothing is known about it."""
    if line is None:
        return "unknown"
    if line.attention in _BAD:
        return "bad"
    if line.attention is not Attention.NONE:
        return "warn"
    return "ok" if line.workers else "unknown"


def _arrow(flow: Flow, places: Mapping[str, tuple[float, float]], most: int, seconds: float) -> Arrow:
    (x1, y1), (x2, y2) = places[flow.from_agent], places[flow.to_agent]
    rate = flow.messages / seconds
    return Arrow(
        flow=flow,
        path=_loop(x1, y1) if flow.from_agent == flow.to_agent else _curve(x1, y1, x2, y2),
        width=round(1.2 + 4.8 * math.sqrt(flow.messages / most), 1),
        state="ok" if not flow.failed else "bad" if flow.failed * 10 >= flow.messages else "warn",
        rate=f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s" if rate >= 0.1 else f"{rate * 60:.1f}/min",
    )


def _curve(x1: float, y1: float, x2: float, y2: float) -> str:
    """Return a bent line between two nodes, so that both directions of a pair are seen."""
    length = math.hypot(x2 - x1, y2 - y1) or 1.0
    across, down = (x2 - x1) / length, (y2 - y1) / length
    middle_x = (x1 + x2) / 2 + -down * length * _BEND
    middle_y = (y1 + y2) / 2 + across * length * _BEND
    gap = NODE_RADIUS + 7  # room for the head of the arrow
    end_length = math.hypot(x2 - middle_x, y2 - middle_y) or 1.0
    end_x, end_y = x2 - (x2 - middle_x) / end_length * gap, y2 - (y2 - middle_y) / end_length * gap
    return f"M {x1:.1f} {y1:.1f} Q {middle_x:.1f} {middle_y:.1f} {end_x:.1f} {end_y:.1f}"


def _loop(x: float, y: float) -> str:
    return f"M {x - 6:.1f} {y - 8:.1f} c -24 -34 36 -34 14 -4"
