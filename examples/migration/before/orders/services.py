"""What the views of the shop call."""

from __future__ import annotations

from decimal import Decimal

from django.db import transaction

from orders.models import Order
from orders.tasks import write_invoice


def place_order(customer: str, total: Decimal) -> Order:
    """Store an order, and have its invoice written."""
    with transaction.atomic():
        order = Order.objects.create(customer=customer, total=total)
        transaction.on_commit(lambda: write_invoice.delay(order.pk))
    return order
