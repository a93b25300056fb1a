"""The agents ``payment`` and ``stock``: an effect and the note that it happened are one transaction."""

from __future__ import annotations

from accounts import Entry, Reservation
from shop_app import app
from sqlalchemy import func, select

from waooaw_celery import Agent

#: What the stock has.
ITEMS = {"book": 2, "pen": 100}
#: Accounts have this much, in cents.
LIMIT = 500_00

payment = Agent("payment", app)
stock = Agent("stock", app)


class PaymentRefused(Exception):
    """The account has not enough money."""


class SoldOut(Exception):
    """There is no more of it."""


@payment.method(once=True)
def charge(order: str, cents: int) -> int:
    """Charge an order, and return the number of the entry.

    A second delivery of this message finds its note in the inbox, and returns the number of the first.
    """
    if cents > LIMIT:
        raise PaymentRefused(f"{cents / 100:.2f} is more than the account has")
    entry = Entry(order=order, cents=cents)
    payment.session.add(entry)
    payment.session.flush()
    return entry.number


@payment.method(once=True)
def refund(order: str) -> int:
    """Give back what is still charged for an order, and return the amount in cents."""
    charged = payment.session.scalar(select(func.sum(Entry.cents)).where(Entry.order == order)) or 0
    if charged:
        payment.session.add(Entry(order=order, cents=-charged))
    return charged


@stock.method(once=True)
def reserve(order: str, item: str) -> None:
    """Keep a thing for an order."""
    kept = stock.session.scalar(select(func.count()).where(Reservation.item == item)) or 0
    if kept >= ITEMS.get(item, 0):
        raise SoldOut(f"there is no {item}")
    stock.session.add(Reservation(order=order, item=item))


@stock.method(once=True)
def release(order: str) -> None:
    """Keep nothing for an order any more."""
    reservation = stock.session.get(Reservation, order)
    if reservation is not None:
        stock.session.delete(reservation)


@stock.method
def ship(order: str) -> str:
    """Hand a parcel to the carrier."""
    return f"parcel-{order}"
