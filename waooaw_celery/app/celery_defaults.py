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
    # A message that cannot be decoded gets a ledger record as well as a log line.
    "worker_consumer": "waooaw_celery.worker.consumer:AgentConsumer",
    # With --autoscale, a worker's pool grows by what waits in its queues, and fetches no more than it can handle.
    "worker_autoscaler": "waooaw_celery.worker.scaling.autoscaler:BacklogAutoscaler",
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
    # Redis refuses writes while its disk is full or it is a replica. The worker retries and does not stop.
    "broker_channel_error_retry": True,
    "broker_pool_acquire_timeout": 5.0,
    # Celery ends a handler that hangs; a handler that needs longer sets its own time_limit. There is no soft
    # limit: with one, Celery would ignore a shorter hard limit.
    "task_time_limit": 300,
    "timezone": "UTC",
}

#: Options of the broker's transport, by the driver type that Kombu gives it.
TRANSPORT_DEFAULTS: dict[str, dict[str, Any]] = {
    "redis": {
        # A worker renews its leases every 3 s, so a pause of 10 s does not end them. The messages of a killed
        # worker are redelivered after the timeout.
        "visibility_timeout": 13.5,
        # Seconds between two checks for expired leases.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        # Without these timeouts, a publish to a broker that froze would block for ever.
        "socket_timeout": 3.0,
        "socket_connect_timeout": 2.0,
        "socket_keepalive": True,
        "health_check_interval": 10,
    },
    "amqp": {
        # Without confirms, RabbitMQ drops what it cannot store and the publish still returns. (The publisher also
        # sets `mandatory`, so that RabbitMQ returns a message that no queue takes.)
        "confirm_publish": True,
    },
}

#: Options for publishing connections only. A consumer waits for the next message without a timeout.
PUBLISH_DEFAULTS: dict[str, dict[str, Any]] = {
    # The timeouts end a publish to a broker that froze, or that blocks publishers because its memory is full.
    "amqp": {"read_timeout": 3.0, "write_timeout": 3.0},
}

#: Options for Kombu's own Redis transport. It does not renew leases, so the timeout exceeds the hard time limit
#: (300) plus the longest pause before a retry (600, Celery's retry_backoff_max).
KOMBU_REDIS_DEFAULTS: dict[str, Any] = {"visibility_timeout": 960, "unacked_restore_interval": 5}
