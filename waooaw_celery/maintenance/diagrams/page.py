"""Makes one HTML page of a conversation: a summary, both pictures, and every message with its events."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Collection, Sequence
from datetime import datetime
from hashlib import sha256
from xml.sax.saxutils import escape

from waooaw_celery.ledger.read.records import AuditEvent, AuditRecord
from waooaw_celery.maintenance.diagrams.building import MAX_ARROWS, diagram_of
from waooaw_celery.maintenance.diagrams.model import FAILURES, ConversationDiagram, ParticipantKind
from waooaw_celery.maintenance.diagrams.page_style import PAGE_CSS
from waooaw_celery.maintenance.diagrams.svg.sequence import sequence_svg, status_class
from waooaw_celery.maintenance.diagrams.svg.style import DIAGRAM_CSS
from waooaw_celery.maintenance.diagrams.svg.timeline import timeline_svg
from waooaw_celery.maintenance.diagrams.text import (
    ARROW,
    duration,
    moment,
    printable,
    status_text,
    status_word,
)
from waooaw_celery.messages.validation import tagged

#: Most messages that the page describes one by one. The pictures show all of them.
MAX_MESSAGES = 1000
#: Most characters of one payload, and of all payloads of a page.
MAX_PAYLOAD, MAX_PAYLOADS = 20_000, 4_000_000
_encode = json.JSONEncoder(indent=2, ensure_ascii=False, default=tagged).encode


def html_page(
    records: Sequence[AuditRecord],
    *,
    payloads: bool = False,
    workflows: Collection[str] = (),
    max_arrows: int = MAX_ARROWS,
    max_messages: int = MAX_MESSAGES,
) -> str:
    """Return a conversation as one HTML page that needs nothing else: no network, no script.

    Args:
        records: the messages in causal order, as for ``diagram_of``.
        payloads: whether to show the payloads; the records must then have been read with them. A large payload is
            cut, and the page says how large it is.
        workflows: the ids of the workflows in this conversation.
        max_arrows: most arrows of the pictures, as for ``diagram_of``.
        max_messages: most messages that the page describes one by one; those that were not handled come first
            into the choice.

    Raises:
        InvalidMessage: there is no record.
        PayloadNotLoaded: ``payloads`` is true, and the records were read without them.

    Example:
        >>> Path("conversation.html").write_text(html_page(trail.conversation(id), payloads=True), "utf-8")
    """
    diagram = diagram_of(records, max_arrows=max_arrows, workflows=workflows)
    style = f"{PAGE_CSS}\n{DIAGRAM_CSS}\n"
    digest = b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    shown = _chosen(records, max_messages)
    anchors = {record.receipt.message_id: f"m{number}" for number, record in enumerate(shown, 1)}

    def link(message_id: str) -> str | None:
        return f"#{anchors[message_id]}" if message_id in anchors else None

    name = f"Conversation {_text(diagram.conversation_id)}"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">',
        f"<title>{name}</title><style>{style}</style></head><body><main>",
        f"<header><h1>Conversation <code>{_text(diagram.conversation_id)}</code></h1>{_summary(diagram)}</header>",
        _picture("Sequence", "sequence", _folding_note(diagram), sequence_svg(diagram, link=link)),
        _picture(
            "Timeline", "timeline", "A dashed bar waits, a full bar is handled.", timeline_svg(diagram, link=link)
        ),
        '<section aria-labelledby="messages"><h2 id="messages">Messages</h2>',
    ]
    if len(shown) < len(records):
        parts.append(
            f"<p>{len(shown):,} of {len(records):,} messages are described here: first those that were not "
            "handled, then the earliest ones. The pictures count all of them.</p>"
        )
    budget = _Budget(MAX_PAYLOADS) if payloads else None
    parts += [_message(record, anchors, budget) for record in shown]
    parts.append("</section></main></body></html>\n")
    return "\n".join(parts)


class _Budget:
    """How many characters of payloads the page may still have."""

    def __init__(self, left: int) -> None:
        self._left = left

    def cut(self, text: str) -> str:
        """Return as much of a text as the page may have."""
        kept = text[: min(MAX_PAYLOAD, self._left)]
        self._left -= len(kept)
        return kept


def _chosen(records: Sequence[AuditRecord], limit: int) -> list[AuditRecord]:
    if len(records) <= limit:
        return list(records)
    numbers = sorted(range(len(records)), key=lambda number: records[number].receipt.status not in FAILURES)
    return [records[number] for number in sorted(numbers[:limit])]


def _summary(diagram: ConversationDiagram) -> str:
    agents = [each.name for each in diagram.participants if each.kind is not ParticipantKind.TOPIC]
    states = ", ".join(f"{count} {status_word(status)}" for status, count in diagram.by_status)
    retries = "1 retry" if diagram.retries == 1 else f"{diagram.retries} retries"
    others = f"not handled: failed, expired or a dead letter; {diagram.open} not ended; {retries}"
    facts = [
        ("Messages", f"{diagram.messages:,}", states),
        ("Duration", duration(diagram.seconds), f"{moment(diagram.began_at)} to {moment(diagram.ended_at)}"),
        ("Failures", f"{diagram.failures:,}", others),
        ("Participants", f"{diagram.agents:,}", ", ".join(agents)),
    ]
    cards = "".join(
        f'<div class="{"card bad" if name == "Failures" and diagram.failures else "card"}">'
        f"<dt>{name}</dt><dd><strong>{_text(value)}</strong><span>{_text(more)}</span></dd></div>"
        for name, value, more in facts
    )
    return f"<dl>{cards}</dl>"


def _folding_note(diagram: ConversationDiagram) -> str:
    if not diagram.is_folded:
        return "Time runs downwards. Select an arrow to read its message."
    return (
        f"{diagram.messages:,} messages are folded into {len(diagram.arrows):,} arrows: an arrow with a number "
        "stands for messages of one route within a slice of time, and has their worst status."
    )


def _picture(name: str, id_: str, note: str, svg: str) -> str:
    return (
        f'<section aria-labelledby="{id_}"><h2 id="{id_}">{name}</h2><p>{note}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{id_}">{svg}</div></section>'
    )


def _message(record: AuditRecord, anchors: dict[str, str], budget: _Budget | None) -> str:
    receipt = record.receipt
    target = f"{receipt.to_agent}.{receipt.handler}" if receipt.to_agent else f"topic {receipt.handler}"
    facts: list[tuple[str, str | None]] = [
        ("Id", f"<code>{_text(receipt.message_id)}</code>"),
        ("Type, priority", f"{receipt.message_type.value}, {receipt.priority.name}"),
        ("Sent", moment(receipt.sent_at)),
        ("First delivered", _moment(receipt.delivered_at)),
        ("Ended", _moment(receipt.finished_at)),
        ("Expires", _moment(record.expires_at)),
        ("Attempts", str(receipt.attempts) if receipt.attempts else None),
        ("Cancellation requested", _moment(receipt.cancel_requested_at)),
        ("Error", receipt.error and f'<pre class="error">{_text(receipt.error, lines=True)}</pre>'),
        ("Cause", record.causation_id and _reference(record.causation_id, anchors)),
        ("Capability", record.capability and _text(record.capability)),
        ("Identity of the sender", record.identity and _text(record.identity)),
        ("Trace", record.trace_id and f"<code>{_text(record.trace_id)}</code>"),
        # Only with the payload: who can guess a short one would learn from this that the guess is right.
        ("SHA-256 of the payload", f"<code>{_text(record.payload_digest)}</code>" if budget else None),
    ]
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts if value)
    status = f'<span class="status {status_class(receipt.status)}">{status_text(receipt.status)}</span>'
    route = f"{_text(receipt.from_agent)} {ARROW} {_text(target)}"
    return (
        f'<article id="{anchors[receipt.message_id]}"><h3>{status} <span>{route}</span></h3>'
        f'<dl class="facts">{listed}</dl>{_events(record.events)}{_payload(record, budget)}</article>'
    )


def _reference(message_id: str, anchors: dict[str, str]) -> str:
    code = f"<code>{_text(message_id)}</code>"
    return f'<a href="#{anchors[message_id]}">{code}</a>' if message_id in anchors else code


def _events(events: Sequence[AuditEvent]) -> str:
    if not events:
        return "<p>No event is recorded.</p>"
    rows = "".join(_event_row(event) for event in events)
    head = (
        "<tr><th>Event</th><th>Time (UTC)</th><th>Attempt</th><th>Seconds</th><th>Worker</th><th>Error</th></tr>"
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Events"><table>'
        f"<thead>{head}</thead><tbody>{rows}</tbody></table></div>"
    )


def _event_row(event: AuditEvent) -> str:
    cells = (
        event.event,
        moment(event.at).removesuffix(" UTC"),
        str(event.attempt) if event.attempt else "",
        "" if event.seconds is None else f"{event.seconds:.3f}",
        event.worker or "",
        event.error or "",
    )
    return f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>"


def _payload(record: AuditRecord, budget: _Budget | None) -> str:
    if record.erased_at is not None:
        return f"<p>The payload was erased at {moment(record.erased_at)}.</p>"
    if budget is None:
        return ""
    if record.reference is not None:
        return (
            f"<p>The payload has {record.reference.size:,} bytes, and is kept in the store of large payloads as "
            f"{_text(record.reference.key)}.</p>"
        )
    text = _encode(record.payload)
    size = len(text.encode("utf-8", "surrogatepass"))
    kept = budget.cut(text)
    cut = f"<p>Cut: the payload has {size:,} bytes.</p>" if len(kept) < len(text) else ""
    return (
        f"<details><summary>Payload, {size:,} bytes</summary>"
        f'<pre class="payload" tabindex="0">{_text(kept, lines=True)}</pre>{cut}</details>'
    )


def _moment(at: datetime | None) -> str | None:
    return None if at is None else moment(at)


def _text(text: str, *, lines: bool = False) -> str:
    """Return any text as HTML; with ``lines``, its line breaks stay."""
    if not lines:
        return escape(printable(text), {'"': "&quot;"})
    return "\n".join(escape(printable(line), {'"': "&quot;"}) for line in text.expandtabs(4).splitlines())
