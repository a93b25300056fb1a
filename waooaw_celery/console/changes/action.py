"""What an action is: a change that a form of the console asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from waooaw_celery.app.app import AgentApp
from waooaw_celery.console.access.roles import Role
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.validation import JSON, mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a form gives.

    Attributes:
        app: the application.
        by: who asks.
        reason: why.
        fields: the fields of the form, each with its values.
    """

    app: AgentApp
    by: str
    reason: str
    fields: Mapping[str, list[str]]

    def text(self, name: str) -> str:
        """Return the value of a field that must be there.

        Raises:
            InvalidMessage: it is missing or empty.
        """
        value = self.optional(name)
        if value is None:
            raise InvalidMessage(f"the field {name} is empty: fill it in")
        return value

    def optional(self, name: str) -> str | None:
        """Return the value of a field; None if it is missing or empty."""
        values = self.fields.get(name, [])
        return values[0].strip() or None if values else None

    def flag(self, name: str) -> bool:
        """Return whether a box is ticked."""
        return bool(self.fields.get(name))

    def number(self, name: str) -> float:
        """Return the number in a field.

        Raises:
            InvalidMessage: there is none.
        """
        text = self.text(name)
        try:
            return float(text)
        except ValueError:
            raise InvalidMessage(f"{text!r:.80} in the field {name} is no number") from None

    def json(self, name: str) -> JSON:
        """Return the JSON value in a field. Types that JSON does not have are written as ``pretty`` writes them.

        Raises:
            InvalidMessage: there is none.
        """
        text = self.text(name)
        try:
            value: JSON = json.loads(text, object_pairs_hook=mapping)
        except Exception as error:  # noqa: BLE001 - a tagged value is read by whatever reads its type
            raise InvalidMessage(f'the field {name} is not JSON ({error}): write a string as "text"') from None
        return value

    def time(self, name: str) -> datetime:
        """Return the time in a field, in ISO 8601.

        Raises:
            InvalidMessage: there is none.
        """
        text = self.text(name)
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            raise InvalidMessage(f"{text!r:.80} is no time, such as 2026-11-30T09:30:00+00:00") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A change.

    Attributes:
        name: its name, as in the path of the form and in the ledger.
        role: who may make it.
        target: the fields that say what is changed, for the record.
        run: carries it out, and returns what was done, in a sentence.
    """

    name: str
    role: Role
    target: tuple[str, ...]
    run: Callable[[Given], str]
