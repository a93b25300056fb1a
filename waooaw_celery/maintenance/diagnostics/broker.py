"""The broker: whether it answers, and whether it accepts a message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from amqp import Message
from amqp.exceptions import AccessRefused, IrrecoverableConnectionError, NotAllowed, PreconditionFailed
from kombu.utils.encoding import safe_str

from waooaw_celery.app.app import AgentApp
from waooaw_celery.maintenance.diagnostics.connections import broker_client
from waooaw_celery.maintenance.diagnostics.finding import Finding, fail, ok
from waooaw_celery.messages.queues import AGENT_QUEUES, first_url
from waooaw_celery.messages.urls import shown_url

#: Seconds within which RabbitMQ must confirm a message.
CONFIRM_SECONDS = 5.0


def broker(app: AgentApp) -> Iterator[Finding]:
    """Check that the broker answers, and name it.

    Raises:
        KombuError, AMQPError, RedisError, OSError: it does not answer, or refuses the login.
    """
    url = shown_url(first_url(app.conf.broker_write_url or app.conf.broker_url))
    if app.driver == "redis":
        with broker_client(app) as client:
            client.ping()
        yield ok("broker", f"{url} answers")
        return
    with app.connection_for_write() as connection:
        try:
            connection.connect()
        except (AccessRefused, NotAllowed) as error:
            text = str(getattr(error, "reply_text", error)).rstrip(".")
            sentence = f"{url} refuses the login ({text}). Check the user name, the password and the virtual host"
            yield fail("broker", sentence)
            return
        properties = getattr(connection.connection, "server_properties", None) or {}
        product, version = (safe_str(properties.get(each) or "") for each in ("product", "version"))
        yield ok("broker", f"{url} answers: {product} {version}".rstrip(": "))


def publishing(app: AgentApp) -> Iterator[Finding]:
    """Check that RabbitMQ lets this process declare a queue, and confirms a message for it.

    It declares a queue of its own, which is deleted at the end. Redis: see ``permissions.py``.

    Raises:
        KombuError, AMQPError, OSError: the broker does not answer.
    """
    if app.driver != "amqp":
        return
    name = "publishing to the broker"
    queue = f"{AGENT_QUEUES}waooaw-doctor-{uuid4().hex[:8]}"
    with app.connection_for_write() as connection:
        channel: Any = connection.channel()
        step = "configure"
        try:
            channel.queue_declare(queue, exclusive=True, auto_delete=True)
            step = "write"
            channel.confirm_select()
            channel.basic_publish_confirm(
                Message("waooaw doctor"), exchange="", routing_key=queue, confirm_timeout=CONFIRM_SECONDS
            )
            step = "read"
            channel.basic_get(queue, no_ack=True)
        except AccessRefused as error:
            yield fail(name, f"RabbitMQ refuses it ({_text(error)}). {_grant(app, step)}")
        except PreconditionFailed as error:
            yield fail(name, f"RabbitMQ refuses it ({_text(error)})")
        except (TimeoutError, IrrecoverableConnectionError):
            if step != "write":
                raise
            sentence = (
                f"RabbitMQ has not confirmed a message within {CONFIRM_SECONDS:g} s, so sends fail. It does so "
                "while its memory or its disk is full: see `rabbitmq-diagnostics alarms`, and free some"
            )
            yield fail(name, sentence)
        else:
            yield ok(name, "RabbitMQ lets this process declare, write and read a queue, and confirms messages")


def _grant(app: AgentApp, step: str) -> str:
    user = app.connection_for_write().userid or "guest"
    return (
        f"Its user {user} lacks the permission to {step} agent.*: "
        "rabbitmqctl set_permissions -p VHOST USER CONFIGURE WRITE READ"
    )


def _text(error: Any) -> str:
    return str(getattr(error, "reply_text", error)).rstrip(".")
