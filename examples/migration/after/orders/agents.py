"""The agents of the shop."""

from __future__ import annotations

from django.db.models import F
from shop.celery import app

from orders.models import Order
from waooaw_celery import Agent, Message, MessageType

clerk = Agent("clerk", app)
mailer = Agent("mailer", app)


@clerk.on(MessageType.COMMAND, retries=3)
def write_invoice(message: Message) -> None:
    """Write the invoice of an order, and then tell the customer. It was the task `orders.tasks.write_invoice`."""
    order = message.payload["order"]
    Order.objects.filter(pk=order).update(invoice=f"invoice {order}")
    clerk.send("mailer", {"order": order})


@mailer.on(MessageType.COMMAND, retries=3)
def send_mail(message: Message) -> None:
    """Send the customer a mail."""
    Order.objects.filter(pk=message.payload["order"]).update(mails=F("mails") + 1)
