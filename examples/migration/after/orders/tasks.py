"""The ordinary tasks of the shop."""

from __future__ import annotations

from celery import shared_task

from orders.models import Order, Report


@shared_task
def report() -> None:
    """Count the orders. Beat calls it."""
    Report.objects.create(orders=Order.objects.count())
