"""Orders something, and waits for it: ``python order.py ORDER ITEM CENTS``."""

from __future__ import annotations

import sys
import time

from accounts import create_tables
from shop import place_order
from shop_app import app

from waooaw_celery.agents import UnknownWorkflow, WorkflowFailed, Workflows


def outcome(order: str, seconds: float = 60) -> str:
    """Return what has become of an order.

    Raises:
        TimeoutError: nothing has, in this time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return str(Workflows(app).result(order, timeout=deadline - time.monotonic()))
        except WorkflowFailed as error:
            return str(error)
        except UnknownWorkflow:
            time.sleep(0.1)  # the message that starts it is on its way
    raise TimeoutError(f"order {order} has not ended")


if __name__ == "__main__":
    create_tables(app.database.engine)
    place_order(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    print(outcome(sys.argv[1]))
