"""Which dead letters, results and spool rows an erasure removes."""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Any

from waooaw_celery.broker.dead_letters.dead_letter import DeadLetter, read_content
from waooaw_celery.errors import WaooawError
from waooaw_celery.ledger.database.rows import LedgerRow, payload_text
from waooaw_celery.ledger.read.reader import json_spellings
from waooaw_celery.wire.caps import Caps


class ErasureRule:
    """The rule of an erasure, for the places outside of the ledger's database.

    Args:
        agent: what this agent sent or received; None: decided by the text.
        text: what contains this text, in any case; None: decided by the agent.
        ids: the ids of the messages that were erased from the ledger.
        caps: the limits and formats within which dead letters are read.

    Attributes:
        unreadable: the ids of the dead letters that could not be read, and so not searched for the text.
    """

    def __init__(self, *, agent: str | None, text: str | None, ids: Set[str], caps: Caps) -> None:
        self.agent, self.text, self.ids, self._caps = agent, text, ids, caps
        self._spellings = () if text is None else (text.lower(), *(each.lower() for each in json_spellings(text)))
        self.unreadable: set[str] = set()

    def matches_dead_letter(self, letter: DeadLetter) -> bool:
        """Return whether to remove a dead letter."""
        if letter.message_id in self.ids:
            return True
        if self.agent is not None:
            return self.agent in (letter.agent, letter.from_agent)
        if self._contains(letter.reason) or self._contains(letter.raw.decode("utf-8", "replace")):
            return True
        try:
            content = read_content(letter, self._caps)
        except WaooawError:
            self.unreadable.add(letter.id)
            return False
        return self._contains_json([content.args, content.kwargs, content.callbacks])

    def matches_result(self, result: Any) -> bool:
        """Return whether to remove a stored result."""
        return self._contains_json(result)

    def matches_row(self, row: LedgerRow) -> bool:
        """Return whether to blank a row of the spool."""
        if row.message_id in self.ids:
            return True
        try:
            columns = json.loads(row.text)
            parts = [part for part in (columns, columns.get("message")) if isinstance(part, dict)]
        except (ValueError, AttributeError, RecursionError):  # a damaged row
            return self._contains(row.text)
        if self.agent is not None:
            return any(self.agent in (part.get("from_agent"), part.get("to_agent")) for part in parts)
        return any(self._contains(str(part.get(name))) for part in parts for name in _TEXTS)

    def _contains(self, text: str) -> bool:
        found = text.lower()
        return any(spelling in found for spelling in self._spellings)

    def _contains_json(self, value: Any) -> bool:
        return bool(self._spellings) and self._contains(payload_text(value))


#: The columns of a row of the spool that may quote a payload.
_TEXTS = ("payload", "options", "event", "error")
