"""The same work on RabbitMQ, if one answers: sending with confirms, and handling."""

from __future__ import annotations

from benchmarks.suite.groups.handling import emptied_by_agent, emptied_by_celery, ledger
from benchmarks.suite.groups.sending import delay, make_bus, send, send_many
from benchmarks.suite.row import Context, Group, Row

SOLO = ["-P", "solo", "-c", "1"]
DELAY = "Celery .delay, confirmed"
WORKER = "Celery, solo"


def rabbitmq(context: Context) -> Group:
    """Return the group: it has no rows where no RabbitMQ answers."""
    url = context.amqp_url
    if url is None:
        return Group("RabbitMQ", {}, [])
    plain = make_bus(context, url)
    strict = make_bus(context, url, "strict", waooaw_database_url=context.database_url)
    works = {
        DELAY: delay(context, url, broker_transport_options={"confirm_publish": True}),
        "send": send(plain),
        "send_many": send_many(plain),
        "send_many, strict": send_many(strict, "strict"),
    }
    subjects = {name: context.rate(work) for name, work in works.items()}
    subjects[WORKER] = emptied_by_celery(context, url, SOLO)
    subjects["handle"] = emptied_by_agent(context, url, SOLO, {})
    subjects["handle, batched"] = emptied_by_agent(context, url, SOLO, ledger(context, "batched"))
    return Group(
        "RabbitMQ",
        subjects,
        [
            Row("send one, confirmed", "send", DELAY, 1.5),
            Row("send_many(1,000), confirmed", "send_many", DELAY, 6.0),
            Row("send_many(1,000), confirmed, ledger strict", "send_many, strict", DELAY),
            Row("handle, solo, no ledger", "handle", WORKER, 0.9),
            Row("handle, solo, ledger batched", "handle, batched", WORKER, 0.7),
        ],
    )
