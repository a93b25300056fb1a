"""The tasks of the shop."""

from __future__ import annotations

from celery import shared_task
from django.db.models import F

from orders.models import Order, Report


@shared_task
def write_invoice(order_id: int) -> str:
    """Write the invoice of an order, and then tell the customer."""
    number = f"invoice {order_id}"
    Order.objects.filter(pk=order_id).update(invoice=number)
    send_mail.delay(order_id)
    return number


@shared_task(bind=True, max_retries=3)
def send_mail(self, order_id: int) -> None:
    """Send the customer a mail."""
    Order.objects.filter(pk=order_id).update(mails=F("mails") + 1)


@shared_task
def report() -> None:
    """Count the orders. Beat calls it."""
    Report.objects.create(orders=Order.objects.count())
