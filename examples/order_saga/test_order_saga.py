"""The order saga, in the process of the test and without servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import payment
import pytest
from accounts import Entry, Order, Reservation, create_tables
from shop import place_order
from shop_app import app
from sqlalchemy import select
from sqlalchemy.orm import Session

from waooaw_celery.agents import WorkflowFailed, Workflows, WorkflowStatus
from waooaw_celery.testing import Harness, Killed, harness

assert payment.ITEMS["book"] == 2  # importing it registers its agents


@pytest.fixture
def agents_app() -> Iterator[Harness]:
    """The shop, payment and stock, for one test, with empty tables."""
    with harness(app) as found:
        create_tables(app.database.engine)
        yield found


def rows(column: Any) -> list[Any]:
    """Return the values of one column."""
    with Session(app.database.engine) as session:
        return list(session.scalars(select(column)))


def test_an_order_is_charged_and_shipped(agents_app: Harness) -> None:
    """Everything happens once."""
    place_order("o-1", "book", 30_00)
    assert agents_app.result("o-1") == {"order": "o-1", "parcel": "parcel-o-1"}
    assert rows(Entry.cents) == [30_00]
    assert rows(Reservation.order) == ["o-1"]
    agents_app.assert_published("order.shipped", where={"order": "o-1"}, times=1)


def test_a_refused_payment_releases_the_stock(agents_app: Harness) -> None:
    """What was reserved is released, nothing is charged, and the saga says why."""
    place_order("o-1", "book", 900_00)
    with pytest.raises(WorkflowFailed, match="more than the account has"):
        agents_app.result("o-1", timeout=600)
    assert rows(Entry.cents) == rows(Reservation.order) == []
    assert Workflows(app).get("o-1").status is WorkflowStatus.COMPENSATED


def test_what_is_sold_out_is_not_charged(agents_app: Harness) -> None:
    """The third of two books is not sold."""
    for number in range(3):
        place_order(f"o-{number}", "book", 10_00)
    agents_app.clock.advance(minutes=10)
    assert rows(Entry.cents) == [10_00, 10_00]
    with pytest.raises(WorkflowFailed, match="there is no book"):
        agents_app.result("o-2")


def test_a_parcel_that_cannot_be_sent_is_refunded(agents_app: Harness) -> None:
    """When shipping fails for good, charge and reservation are undone."""
    agents_app.fail_next("stock.ship", ConnectionError("no carrier"), times=4)
    place_order("o-1", "book", 30_00)
    agents_app.clock.advance(minutes=10)
    assert rows(Entry.cents) == [30_00, -30_00]
    assert rows(Reservation.order) == []


@pytest.mark.parametrize(
    "moments", [("deliver", "handle"), ("handle", "record"), ("record", "acknowledge")], ids=" to ".join
)
def test_nothing_is_charged_twice_when_the_worker_is_killed(agents_app: Harness, moments: tuple[str, str]) -> None:
    """Wherever the worker of payment is killed, there is one charge."""
    agents_app.kill_between(*moments, "payment.charge")
    place_order("o-1", "book", 30_00)
    agents_app.clock.advance(minutes=10)
    assert agents_app.result("o-1")["parcel"] == "parcel-o-1"
    assert rows(Entry.cents) == [30_00]


def test_an_answer_that_gets_lost_is_not_paid_twice(agents_app: Harness) -> None:
    """The broker delivers the charge twice, and there is one charge."""
    agents_app.duplicate("payment.charge")
    place_order("o-1", "book", 30_00)
    agents_app.clock.advance(minutes=10)
    assert rows(Entry.cents) == [30_00]


def test_an_order_and_its_message_are_one_transaction(agents_app: Harness) -> None:
    """An order that the database refuses sends no message."""
    place_order("o-1", "book", 30_00)
    agents_app.result("o-1")
    with pytest.raises(Exception, match="UNIQUE"):
        place_order("o-1", "book", 30_00)
    agents_app.run()
    assert len(agents_app.sent(to="shop", handler="command")) == 1


def test_an_order_survives_a_kill_after_the_commit(agents_app: Harness) -> None:
    """The process of the customer's request dies before the publish; the recovery finds the message."""
    agents_app.kill_between("record", "publish", "shop.command")
    with pytest.raises(Killed):
        place_order("o-1", "book", 30_00)
    assert rows(Order.order) == ["o-1"]
    agents_app.clock.advance(minutes=10)
    assert agents_app.result("o-1")["parcel"] == "parcel-o-1"
