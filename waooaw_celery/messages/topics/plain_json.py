"""Payloads as plain JSON, for schemas, filters and CloudEvents, which know no other types."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from waooaw_celery.messages.validation import JSON


def as_json(value: JSON, decimal: Callable[[Decimal], Any]) -> JSON:
    """Return a payload in which text replaces the types that JSON does not have.

    Args:
        value: a payload, as ``json_copy`` returns it.
        decimal: converts a Decimal: to a string if no digit may be lost, to a number if it is compared.
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
    """Return a Decimal unchanged, because Python compares it with other numbers exactly."""
    return value
