"""The JSON form of a record with or without its payload."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from waooaw_celery.ledger.read.records import AuditRecord


def record_form(record: AuditRecord, *, payload: bool = True) -> dict[str, Any]:
    """Return the JSON form of a record.

    Args:
        record: the record.
        payload: whether the form has the payload; without it, the record need not have been read with its payload.
    """
    if payload:
        return record.to_dict()
    others = {field.name: getattr(record, field.name) for field in fields(record) if field.name != "payload"}
    form = AuditRecord(payload=None, **others).to_dict()
    del form["payload"]
    return form
