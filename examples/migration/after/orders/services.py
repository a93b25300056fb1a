"""What the views of the shop call."""

from __future__ import annotations

from decimal import Decimal

from django.db import transaction
from shop.celery import app

from orders.models import Order
from waooaw_celery import Message, MessageBus
from waooaw_celery.agents.integrations.django import outbox


def place_order(customer: str, total: Decimal) -> Order:
    """Store an order, and have its invoice written: both are committed together, or neither is."""
    with transaction.atomic():
        order = Order.objects.create(customer=customer, total=total)
        message = Message(from_agent="shop", to_agent="clerk", payload={"order": order.pk})
        MessageBus(app).send(message, session=outbox())
    return order
