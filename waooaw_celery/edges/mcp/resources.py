"""The ledger as read-only resources: conversations and dead letters, bounded in size.

They are for principals that may read it. To others there are none.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Any
from urllib.parse import unquote

import mcp_types as types

from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter, payload_in, read_content
from waooaw_celery.edges.access.principal import Principal
from waooaw_celery.errors import UnknownMessage, WaooawError
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.validation import JSON, tagged

DEAD_LETTERS = "waooaw://dead-letters"
CONVERSATIONS = "waooaw://conversations"
_JSON = "application/json"
#: Most messages of a conversation, and most dead letters of the list, that a resource has.
MAX_MESSAGES, MAX_DEAD_LETTERS = 200, 100
#: Most characters that one payload, and all payloads together, may have.
MAX_PAYLOAD, MAX_PAYLOADS = 16_384, 262_144


class Resources:
    """Lists and reads resources.

    Args:
        app: the application, with a ledger.
    """

    def __init__(self, app: AgentApp) -> None:
        self._app, self._trail = app, MessageAuditTrail(app.ledger)

    def listed(self, principal: Principal) -> list[types.Resource]:
        """Return the resources that a principal sees."""
        if not principal.may_read:
            return []
        about = "The newest dead letters: messages that were unreadable, had no handler, or whose handler failed."
        return [
            types.Resource(
                uri=DEAD_LETTERS, name="dead-letters", title="Dead letters", description=about, mime_type=_JSON
            )
        ]

    def templates(self, principal: Principal) -> list[types.ResourceTemplate]:
        """Return the templates of the resources that a principal sees."""
        if not principal.may_read:
            return []
        conversation = "The messages of a conversation, in causal order; the id is that of any message in it."
        return [
            types.ResourceTemplate(
                uri_template=f"{CONVERSATIONS}/{{id}}",
                name="conversation",
                title="A conversation",
                description=conversation,
                mime_type=_JSON,
            ),
            types.ResourceTemplate(
                uri_template=f"{DEAD_LETTERS}/{{id}}",
                name="dead-letter",
                title="A dead letter",
                description="A dead letter, with its payload if it can be read.",
                mime_type=_JSON,
            ),
        ]

    async def read(self, principal: Principal, uri: str) -> types.ReadResourceResult:
        """Return a resource.

        Raises:
            NotPermitted: the principal may not read the ledger.
            UnknownMessage, UnknownDeadLetter, InvalidMessage: there is no such resource.
            StoreUnavailable, BrokerUnavailable: the ledger or the broker does not answer.
        """
        principal.check_may_read()
        content = await asyncio.to_thread(self._read, uri)
        text = json.dumps(content, ensure_ascii=False, default=tagged)
        return types.ReadResourceResult(contents=[types.TextResourceContents(uri=uri, mime_type=_JSON, text=text)])

    def _read(self, uri: str) -> JSON:
        if uri == DEAD_LETTERS:
            letters = self._app.dead_letters.list(limit=MAX_DEAD_LETTERS)
            return {"dead_letters": [_facts(each) for each in letters], "limit": MAX_DEAD_LETTERS}
        folder, _, id_ = uri.rpartition("/")
        if folder == CONVERSATIONS and id_:
            return self._conversation(unquote(id_))
        if folder == DEAD_LETTERS and id_:
            return self._dead_letter(unquote(id_))
        raise UnknownMessage(
            f"there is no resource {uri!r:.200}: read {DEAD_LETTERS}, {DEAD_LETTERS}/<id> or {CONVERSATIONS}/<id>"
        )

    def _conversation(self, id_: str) -> JSON:
        records = self._trail.conversation(id_, payloads=False)
        shown, left = [], MAX_PAYLOADS
        for record in records[:MAX_MESSAGES]:
            form: dict[str, Any] = {
                "message_id": record.receipt.message_id,
                "from": record.receipt.from_agent,
                "to": record.receipt.to_agent,
                "handler": record.receipt.handler,
                "type": record.receipt.message_type.value,
                "status": record.receipt.status.value,
                "error": record.receipt.error,
                "sent_at": record.receipt.sent_at.isoformat(),
                "caused_by": record.causation_id,
                "identity": record.identity,
            }
            if left > 0:  # one by one, so that no more is read than is shown
                payload = self._trail.receipt(record.receipt.message_id).payload
                form |= _bounded(payload, min(left, MAX_PAYLOAD))
                left -= len(json.dumps(form.get("payload"), default=tagged))
            else:
                form["payload_left_out"] = "the payloads of this conversation are too large: read it by the ledger"
            shown.append(form)
        return {"conversation": id_, "messages": shown, "left_out": len(records) - len(shown)}

    def _dead_letter(self, id_: str) -> JSON:
        letter = self._app.dead_letters.get(id_)
        try:
            payload = payload_in(
                read_content(letter, self._app.packer.caps), self._app.components.large_payloads.load
            )
        except WaooawError as error:
            return {**_facts(letter), "unreadable": str(error)}
        return {**_facts(letter), **_bounded(payload, MAX_PAYLOADS)}


def _bounded(payload: JSON, limit: int) -> dict[str, JSON]:
    size = len(json.dumps(payload, default=tagged))
    if size > limit:
        return {"payload_left_out": f"the payload has {size} characters as JSON, more than {limit}"}
    return {"payload": payload}


def _facts(letter: DeadLetter) -> dict[str, JSON]:
    facts = asdict(letter)
    raw = facts.pop("raw")
    return {**facts, "at": letter.at.isoformat(), "bytes": len(raw)}
