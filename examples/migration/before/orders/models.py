"""What the shop stores."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """An order of a customer."""

    customer = models.CharField(max_length=200)
    total = models.DecimalField(max_digits=10, decimal_places=2)
    invoice = models.CharField(max_length=200, default="")
    mails = models.IntegerField(default=0)


class Report(models.Model):
    """A report that beat asks for."""

    orders = models.IntegerField()
