"""The tables of large payloads."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from waooaw_celery.ledger.database.models import Base


class ObjectRow(Base):
    """A stored payload: its bytes, or only its key where a file system has them.

    The row is written before the payload is, so that a sender that is killed leaves nothing that nobody knows of.
    """

    __tablename__ = "waooaw_objects"

    key: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    stored_at: Mapped[datetime]
    #: NULL: the file system of ``waooaw_reference_store`` has it.
    content: Mapped[bytes | None] = mapped_column(LargeBinary)


class ObjectUseRow(Base):
    """A message that carries the reference to a stored payload. A payload is kept as long as one of them is."""

    __tablename__ = "waooaw_object_uses"
    __table_args__ = (Index("waooaw_object_uses_message", "message_id"),)

    key: Mapped[str] = mapped_column(ForeignKey("waooaw_objects.key"), primary_key=True)
    message_id: Mapped[str] = mapped_column(primary_key=True)
    used_at: Mapped[datetime]
