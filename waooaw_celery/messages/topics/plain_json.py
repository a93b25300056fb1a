"""The bare JSON that stands for a payload, for what knows nothing else: schemas, filters, CloudEvents."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from waooaw_celery.messages.validation import JSON


def as_json(value: JSON, decimal: Callable[[Decimal], Any]) -> JSON:
    """Return a payload with text in place of what JSON lacks.

    Args:
        value: what a message says: see ``values.json_copy``.
        decimal: makes of a Decimal what serves: a text where no digit may be lost, a number where it is compared.
    """
    if isinstance(value, dict):
        return {key: as_json(item, decimal) for key, item in value.items()}
    if isinstance(value, list):
        return [as_json(item, decimal) for item in value]
    if isinstance(value, Decimal):
        return decimal(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def unchanged(value: Decimal) -> Decimal:
    """Return a Decimal as it is: Python compares it with other numbers, exactly."""
    return value
