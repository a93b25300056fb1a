"""Beat's schedules of agents' handlers, whose priorities may be numbers, as in Django's admin."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest
from celery.beat import ScheduleEntry, Scheduler
from support import settled

from waooaw_celery import AgentApp, MessageBus, MessageStatus, Priority
from waooaw_celery.errors import InvalidMessage

#: By priority, the numbers that mean it on Redis and on RabbitMQ.
NUMBERS = {
    Priority.URGENT: ((0, 1, 2), (9, 255)),
    Priority.HIGH: ((3, 5), (6, 8)),
    Priority.NORMAL: ((6, 8), (3, 5)),
    Priority.LOW: ((9, 255), (0, 2)),
}


def schedule(app: AgentApp, agent: str, priority: object) -> str:
    """Send an entry as beat does, and return the id of its message."""
    entry = ScheduleEntry(
        *("probe", f"{agent}.command"),
        schedule=timedelta(hours=1),
        args=({},),
        options={"priority": priority},
        app=app,
    )
    return str(Scheduler(app=app, lazy=True).apply_async(entry, advance=False).id)


@pytest.mark.parametrize("priority", NUMBERS, ids=lambda priority: priority.name)
def test_a_number_is_read_as_the_broker_reads_it(
    app: AgentApp, probe: str, priority: Priority, caplog: pytest.LogCaptureFixture
) -> None:
    """It means what it means in plain Celery on this broker, and one warning names the Priority."""
    numbers = NUMBERS[priority][app.driver == "amqp"]
    with caplog.at_level(logging.WARNING):
        ids = [schedule(app, probe, number) for number in numbers]
    receipts = [MessageBus(app).receipt(message_id) for message_id in ids]
    assert [receipt.priority for receipt in receipts] == [priority] * len(numbers)
    warnings = [line for line in caplog.messages if f"set priority='{priority.name}'" in line]
    assert len(warnings) == 1
    assert all(settled(app, message_id) is MessageStatus.HANDLED for message_id in ids)


def test_names_are_read_as_ever_and_numbers_elsewhere_are_refused(
    app: AgentApp, probe: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A name needs no warning. Outside a schedule a number is an error, because it means opposite things."""
    assert MessageBus(app).receipt(schedule(app, probe, "HIGH")).priority is Priority.HIGH
    assert MessageBus(app).receipt(schedule(app, probe, None)).priority is Priority.NORMAL
    assert "set priority" not in caplog.text
    with pytest.raises(InvalidMessage, match="priority must be one of"):
        app.send_task(f"{probe}.command", ({},), priority=3)
    with pytest.raises(Exception, match="priority must be one of"):
        schedule(app, probe, -1)
