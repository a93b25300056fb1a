"""The metrics of the fleet: their names, what they mean, and their labels. All are gauges."""

from __future__ import annotations

from waooaw_celery.maintenance.fleet.samples import Metric

#: Seconds that count as recent.
RECENT_SECONDS = 300

# --- queues

QUEUE_MESSAGES = Metric(
    "waooaw_queue_messages",
    "Messages that wait in an agent's queue, without those that workers hold. On RabbitMQ the priority is"
    " unknown: the broker does not tell it. The agent (system) is the queue of the periodic tasks.",
    ("agent", "priority"),
)
QUEUE_OLDEST = Metric(
    "waooaw_queue_oldest_seconds",
    "Seconds since the oldest message that waits for an agent was sent. On Redis it is the message that "
    "is next in each list of the queue. On RabbitMQ it is known only with a ledger, for the agents of the"
    " 1000 oldest open messages. A message without a time of sending is not counted.",
    ("agent", "priority"),
)
QUEUE_SENDERS = Metric(
    "waooaw_queue_sender_messages",
    "Messages of a sender to an agent that have not ended, for the 20 largest pairs; (other) is the sum "
    "of an agent's other senders. With a ledger all open messages count. Without one, on Redis, about the"
    " next 100 of each list in the 20 fullest queues, unless messages are large; on RabbitMQ there are no"
    " samples.",
    ("agent", "sender"),
)
QUEUE_BUSY_KEYS = Metric(
    "waooaw_queue_busy_keys",
    "Keys of an agent whose messages wait until an earlier message of the same key has ended. Only on Redis.",
    ("agent",),
)

# --- messages

OPEN_MESSAGES = Metric(
    "waooaw_open_messages",
    "Messages in the ledger that have not ended, by status: pending (recorded, the broker has not "
    "confirmed), sent, delivered. The status of the oldest 20000 is read; further ones count as not_read.",
    ("status",),
)
OLDEST_OPEN = Metric(
    "waooaw_oldest_open_message_seconds",
    "Seconds since the oldest message was sent that has not ended; 0 if there is none. A message that is "
    "to be handled at a later time is open until then.",
)
RECENT_MESSAGES = Metric(
    "waooaw_recent_messages",
    "Messages that ended in the last 300 seconds, by final status. Handled ones count if they were sent "
    "within the last hour, others within the last day. At most 100000 of each status are read.",
    ("status",),
)
RECOVERED_MESSAGES = Metric(
    "waooaw_recovered_messages",
    "Recoveries in the last 300 seconds: messages that the broker had lost and that were published again.",
)
LOST_MESSAGES = Metric(
    "waooaw_lost_messages",
    "Messages that failed as lost in the last 300 seconds: recovered too often, or begun by a worker that"
    " never reported their end.",
)
REFUSALS = Metric(
    "waooaw_rate_limit_refusals",
    "Messages that rate limits refused in the last 300 seconds, for the 20 senders with the most; (other)"
    " is the sum of the others. Only with a ledger.",
    ("agent",),
)

# --- dead letters

DEAD_LETTERS = Metric(
    "waooaw_dead_letters",
    "Dead letters in the broker by agent and reason: the newest 1000, and of these the 200 largest "
    "groups. The agent (other) stands for all others, and for all of them on RabbitMQ, where reading "
    "would take them out.",
    ("agent", "reason"),
)
DEAD_LETTERS_STORED = Metric("waooaw_dead_letters_stored", "All dead letters in the broker.")

# --- agents

AGENT_WORKERS = Metric("waooaw_agent_workers", "Living workers of an agent.", ("agent",))
AGENT_HEALTH = Metric(
    "waooaw_agent_health",
    "1 for the present health of an agent: healthy, degraded, unhealthy, or unknown (no worker is alive, "
    "or it has not run its checks yet).",
    ("agent", "health"),
)
BREAKER_OPEN = Metric(
    "waooaw_breaker_open",
    "1 if the circuit breaker of the requested agent is open or lets only a probe through; 0 if it is "
    "closed and has counted failures. Others have no sample. Breakers are shared by all callers.",
    ("target",),
)
CLOCK_AHEAD = Metric(
    "waooaw_clock_ahead_seconds",
    "Seconds by which the clock of a worker's computer is ahead of the reference clock; negative if it is"
    " behind. The 50 workers with the largest difference.",
    ("worker",),
)

# --- workflows

WORKFLOWS = Metric(
    "waooaw_workflows",
    "Workflows that have not ended, by function and status; those that are stuck wait for a person. The "
    "200 largest groups; (other) is the sum of the others.",
    ("workflow", "status"),
)
WORKFLOW_OLDEST = Metric(
    "waooaw_workflow_oldest_seconds",
    "Seconds since the oldest workflow of a status was created, of those that have not ended.",
    ("status",),
)

# --- the ledger

LEDGER_SIZE = Metric("waooaw_ledger_size_bytes", "Size of the ledger's tables and indexes in the database.")
LEDGER_PARTITIONS = Metric(
    "waooaw_ledger_partitions", "Months for which the ledger has partitions. Only on PostgreSQL."
)
LEDGER_DAYS_AHEAD = Metric(
    "waooaw_ledger_partition_days_ahead",
    "Days until the end of the last month that has a partition without a gap before it. Rows that are "
    "kept longer go to the default partition. Only on PostgreSQL.",
)
LEDGER_OVERDUE_PARTITIONS = Metric(
    "waooaw_ledger_overdue_partitions",
    "Months with partitions whose retention is over: a purge drops them, unless a message in them is open"
    " or on hold. Only on PostgreSQL.",
)
LEDGER_PURGE_AGE = Metric(
    "waooaw_ledger_purge_age_seconds",
    "Seconds since the last purge; if there was none, since the first message that the ledger has.",
)
LEDGER_LAG = Metric(
    "waooaw_ledger_lag_seconds",
    "The longest time between the sending of a message and its row in the ledger, of the 100 open "
    "messages that were sent last. It is long while spooled messages are written after an outage.",
)

# --- the exporter

SOURCE_UP = Metric(
    "waooaw_exporter_source_up",
    "1 if the newest reading of a source succeeded in time; 0 if it failed or takes too long.",
    ("source",),
)
SOURCE_AGE = Metric(
    "waooaw_exporter_source_age_seconds",
    "Seconds since a source was last read successfully. Its samples are dropped when that is too long ago.",
    ("source",),
)
SOURCE_READ = Metric(
    "waooaw_exporter_source_read_seconds", "Seconds that the newest reading of a source took.", ("source",)
)

#: All metrics of the exporter.
ALL = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
