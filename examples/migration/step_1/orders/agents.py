"""The agents of the shop."""

from __future__ import annotations

from django.db.models import F
from shop.celery import app

from orders.models import Order
from waooaw_celery import Agent, Message, MessageType

mailer = Agent("mailer", app)


@mailer.on(MessageType.COMMAND, retries=3)
def send_mail(message: Message) -> None:
    """Send the customer a mail. It was the task `orders.tasks.send_mail`."""
    Order.objects.filter(pk=message.payload["order"]).update(mails=F("mails") + 1)
