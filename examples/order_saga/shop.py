"""The shop: it accepts orders, and its workflow carries them out or undoes what was done."""

from __future__ import annotations

from typing import Any

from accounts import Order
from shop_app import app
from sqlalchemy.orm import Session

from waooaw_celery import Agent, Message, MessageBus, MessageType
from waooaw_celery.agents import Flow, RetryPolicy, Workflows

shop = Agent("shop", app)


def place_order(order: str, item: str, cents: int) -> None:
    """Write an order and the message about it in one transaction: both are there, or neither (the outbox).

    A web request calls it. If the process is killed after the commit, the recovery publishes the message.
    """
    given = {"order": order, "item": item, "cents": cents}
    with Session(app.database.engine) as session:
        session.add(Order(**given))
        message = Message(from_agent="shop", to_agent="shop", payload=given, ttl_seconds=None)
        MessageBus(app).send(message, session=session)
        session.commit()


@shop.on(MessageType.COMMAND)
def accept(message: Message) -> None:
    """Start the workflow of an order. The order is its id, so a message that comes twice starts it once."""
    Workflows(app).start("shop.fulfil", message.payload, workflow_id=message.payload["order"])


@shop.workflow
async def fulfil(flow: Flow, order: str, item: str, cents: int) -> dict[str, Any]:
    """Reserve, charge and ship. If a step fails for good, the steps before it are undone, the last one first."""
    patiently = RetryPolicy.exponential(4, 1)
    await flow.request("stock", "reserve", {"order": order, "item": item}, retry=patiently)
    flow.compensate("stock", "release", {"order": order})
    await flow.request("payment", "charge", {"order": order, "cents": cents}, retry=patiently)
    flow.compensate("payment", "refund", {"order": order})
    parcel = await flow.request("stock", "ship", {"order": order}, retry=patiently)
    await flow.publish("order.shipped", {"order": order, "parcel": parcel})
    return {"order": order, "parcel": parcel}
