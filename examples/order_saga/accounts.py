"""The tables of the shop, in the database of the ledger: so they share its transactions."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The tables of the shop."""


class Order(Base):
    """What a customer wants."""

    __tablename__ = "shop_orders"
    order: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str]
    cents: Mapped[int]


class Entry(Base):
    """A charge, or a refund with a negative amount. There is no key that would refuse a second charge."""

    __tablename__ = "shop_entries"
    number: Mapped[int] = mapped_column(primary_key=True)
    order: Mapped[str]
    cents: Mapped[int]


class Reservation(Base):
    """A thing that is kept for an order."""

    __tablename__ = "shop_reservations"
    order: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str]


def create_tables(engine: Engine) -> None:
    """Create the tables that are missing."""
    Base.metadata.create_all(engine)
