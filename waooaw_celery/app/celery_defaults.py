"""What Celery is configured with for agents; a project's own configuration overrides each value."""

from __future__ import annotations

from typing import Any

#: Celery's settings that every app starts from; a project's own configuration overrides each of them.
CELERY_DEFAULTS: dict[str, Any] = {
    # Nothing is lost: a message is acknowledged after it was handled, and one whose worker process was killed is
    # published again, at most `max_retries` times. (The older task_reject_on_worker_lost would loop for ever.)
    "task_acks_late": True,
    "task_reject_on_worker_lost": False,
    "task_retry_on_worker_lost": True,
    "task_acks_on_failure": True,
    "task_acks_on_timeout": True,
    # With more than one message fetched ahead, an URGENT one would wait behind LOW ones already fetched.
    "worker_prefetch_multiplier": 1,
    # Write JSON, and read formats that carry only data. With pickle, a writer to a queue could run code here.
    "task_serializer": "json",
    "result_serializer": "json",
    "event_serializer": "json",
    "accept_content": ["json", "msgpack", "protobuf"],
    "result_accept_content": ["json", "msgpack", "protobuf"],
    # What cannot be read is told to the ledger, and not to the log only.
    "worker_consumer": "waooaw_celery.worker.consumer:AgentConsumer",
    # Answers are kept an hour for callers that fetch them late.
    "result_expires": 3600,
    # Bounded waiting: Celery's own defaults retry a dead result backend for 20 s, and wait for ever for a pool.
    "result_backend_transport_options": {"retry_policy": {"max_retries": 2, "interval_start": 0.1}},
    "redis_socket_connect_timeout": 2.0,
    "redis_socket_timeout": 3.0,
    "task_publish_retry_policy": {
        "max_retries": 2,
        "interval_start": 0,
        "interval_step": 0.2,
        "interval_max": 0.5,
    },
    "broker_connection_timeout": 2.0,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # What Redis refuses for a while, when its disk is full or it became a replica, does not end the worker.
    "broker_channel_error_retry": True,
    "broker_pool_acquire_timeout": 5.0,
    # A handler that hangs is ended; a longer one says so with its own time_limit. There is no soft limit: with
    # one, Celery would not look at a hard limit that is shorter.
    "task_time_limit": 300,
    "timezone": "UTC",
}

#: Options of the broker's transport, by the driver type that Kombu gives it.
TRANSPORT_DEFAULTS: dict[str, dict[str, Any]] = {
    "redis": {
        # A worker renews its leases every 3 s, so one that stands still for 10 s keeps what it holds. The messages
        # of a killed worker are delivered again after the timeout.
        "visibility_timeout": 13.5,
        # Seconds between two looks for leases that have ended.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        # A broker that froze is noticed: without these a publish would block for ever.
        "socket_timeout": 3.0,
        "socket_connect_timeout": 2.0,
        "socket_keepalive": True,
        "health_check_interval": 10,
    },
    "amqp": {
        # Without confirms, RabbitMQ drops what it cannot take and the publish still returns. (The door asks for
        # the return of what has no queue as well.)
        "confirm_publish": True,
    },
}

#: The same for connections over which messages are published, and no others: a consumer waits for the next message
#: however long that takes.
PUBLISH_DEFAULTS: dict[str, dict[str, Any]] = {
    # A broker that froze, or that blocks publishers since its memory is full, is noticed.
    "amqp": {"read_timeout": 3.0, "write_timeout": 3.0},
}

#: What is different where Kombu's own transport carries messages on Redis: it renews nothing, so the timeout is
#: above the hard time limit (300) plus the longest pause before a retry (600, Celery's retry_backoff_max).
KOMBU_REDIS_DEFAULTS: dict[str, Any] = {"visibility_timeout": 960, "unacked_restore_interval": 5}
