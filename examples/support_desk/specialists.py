"""The specialists. The desk does not know their names: it asks for the capability ``solve`` and a tag."""

from __future__ import annotations

import re
from typing import Any

from desk_app import app

from waooaw_celery import Agent

billing = Agent("billing", app, tags=["billing"])
technician = Agent("technician", app, tags=["technical"])


@billing.method(capability="solve")
def solve_bill(customer: str, text: str) -> dict[str, Any]:
    """Refund the amount that the customer names, in cents."""
    amount = re.search(r"(\d+) euros", text)
    refund = int(amount[1]) * 100 if amount else 0
    return {"text": f"Dear {customer}, you get {refund / 100:.2f} euros back.", "refund": refund, "by": "billing"}


@technician.method(capability="solve")
def solve_fault(customer: str, text: str) -> dict[str, Any]:
    """Say what a technician always says."""
    return {"text": f"Dear {customer}, please turn it off and on again.", "by": "technician"}
