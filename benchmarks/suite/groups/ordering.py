"""What it costs to group a queue's messages by sender and by key."""

from __future__ import annotations

from benchmarks.suite.groups.handling import emptied_by_agent
from benchmarks.suite.row import Context, Group, Row, Subject

#: The least part of the rate without groups.
TARGET = 0.9


def ordering(context: Context) -> Group:
    """Return the group. Each message has a key of its own: this is the most work."""
    options = ["-P", "solo", "-c", "1"]
    kinds = {
        "plain queue": {},
        "fair queue": {"WAOOAW_FAIR_QUEUES": "1"},
        "in order by key": {"BENCH_KEY": "conversation_id"},
        "fair and by key": {"WAOOAW_FAIR_QUEUES": "1", "BENCH_KEY": "conversation_id"},
    }
    subjects: dict[str, Subject] = {
        name: emptied_by_agent(context, context.redis_url, options, env) for name, env in kinds.items()
    }
    rows = [Row(f"handle, solo, {name}", name, "plain queue", TARGET) for name in kinds if name != "plain queue"]
    return Group("Order and fairness", subjects, rows)
