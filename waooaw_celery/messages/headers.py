"""Converts Celery's arguments and headers to messages, for `.delay` and for retries."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.enums import MessageType, RetentionPolicy
from waooaw_celery.messages.message import ENVELOPE_HEADER, Message
from waooaw_celery.messages.queues import HandlerName, takes_message
from waooaw_celery.messages.references.reference import Reference, reference_in
from waooaw_celery.messages.trace_context import trace_of
from waooaw_celery.messages.validation import JSON

#: The options of ``apply_async``, as Celery passes them on.
PublishArguments = Mapping[str, Any]


def message_of_delay(
    target: HandlerName,
    args: Any,
    kwargs: Any,
    options: PublishArguments,
    *,
    sender: str,
    default_ttl: float | None,
    zone: tzinfo,
    now: datetime,
) -> Message:
    """Return the message for a ``.delay`` or an ``apply_async``.

    Args:
        target: the handler that is called.
        args: the positional arguments; a handler that takes a message gets the payload as its only one.
        kwargs: the keyword arguments.
        options: the options of ``apply_async``.
        sender: the agent that sends.
        default_ttl: seconds until the message expires if the options do not set ``expires``; None: never.
        zone: time zone of datetimes in the options that have none.
        now: the time by the reference clock, which times in the options refer to as well.

    Raises:
        InvalidMessage: an argument cannot be sent, or an option is invalid.
    """
    if target.message_type is MessageType.EVENT:
        raise InvalidMessage(
            f"{target} handles events: publish one with EventBus(app).publish(topic, event), or replay one to it"
        )
    if takes_message(target.handler) and (len(args or ()) != 1 or kwargs):
        raise InvalidMessage(f"{target} takes one argument, the payload: {target}.delay({{...}})")
    fields: dict[str, Any] = {"message_id": options["task_id"]} if options.get("task_id") else {}
    if options.get("priority") is not None:
        fields["priority"] = options["priority"]
    return Message(
        from_agent=sender,
        to_agent=target.agent,
        message_type=target.message_type,
        payload=payload_of(target.handler, args or (), kwargs or {}),
        ttl_seconds=_ttl(options, default_ttl, zone, now),
        conversation_id=options.get("root_id"),
        causation_id=options.get("parent_id"),
        trace=trace_of(options.get("headers") or {}),
        **fields,
    )


def message_of_retry(target: HandlerName, args: Any, kwargs: Any, options: PublishArguments) -> Message:
    """Return the message that a retry publishes: the same message, with the same id.

    Args:
        target: the handler that is tried again.
        args: the positional arguments of the task.
        kwargs: the keyword arguments of the task.
        options: the options of the retry, with the headers of the message.

    Raises:
        InvalidMessage: this version cannot read the envelope that the message arrived with.
    """
    headers = {
        "id": options["task_id"],
        "root_id": options.get("root_id"),
        "parent_id": options.get("parent_id"),
        ENVELOPE_HEADER: (options.get("headers") or {}).get(ENVELOPE_HEADER),
        **(trace_of(options.get("headers") or {}) or {}),
    }
    return Message.from_headers(headers, target.agent, payload_of(target.handler, args or (), kwargs or {}))


def with_conversation_ids(
    target: HandlerName,
    message: Message,
    cause: Message | None,
    retention: RetentionPolicy | None,
    sent_at: datetime,
    ledger: str | None = None,
) -> Message:
    """Return a message with its time of sending, its retention, its ledger, and what links it to its cause.

    Args:
        target: the handler that the message is for. A request's correlation id is its own id.
        message: the new message; ids that it already has stay as they are.
        cause: the message whose handler sends this one, or None outside of handlers.
        retention: how long the ledger keeps the message, or None without a ledger.
        sent_at: the time of sending.
        ledger: id of the ledger that records the message, or None without a ledger.
    """
    inherited = cause.correlation_id if cause and takes_message(target.handler) else None
    return message.filled_in(
        retention=retention,
        ledger=ledger,
        sent_at=sent_at,
        correlation_id=message.correlation_id or inherited or message.message_id,
        conversation_id=message.conversation_id or (cause.conversation_id if cause else message.message_id),
        causation_id=message.causation_id or (cause.message_id if cause else None),
        # So a trace also goes on through an agent that does not trace.
        trace=message.trace or (cause.trace if cause else None),
    )


def payload_of(handler: str, args: Any, kwargs: Any) -> JSON | Reference:
    """Return the payload that a task's arguments carry: a message's payload, or the parameters of a method.

    Arguments that were not loaded yet carry a Reference.

    Args:
        handler: name of the handler.
        args: positional arguments of the task; a handler that takes a message gets the payload as its only one.
        kwargs: keyword arguments of the task.
    """
    reference = reference_in(args)
    if reference is not None:
        return reference
    if takes_message(handler) and len(args) == 1 and not kwargs:
        return args[0]
    return {"args": list(args), "kwargs": dict(kwargs)} if args else dict(kwargs)


def check_delay(
    options: PublishArguments, run_seconds: float, visibility_timeout: float, zone: tzinfo, now: datetime
) -> None:
    """Refuse an ``eta`` or ``countdown`` that reaches past Redis's visibility timeout.

    A worker acknowledges a message after it is due and handled. Kombu on Redis redelivers a message that is not
    acknowledged within the visibility timeout, so one that is due later would be redelivered again and again.

    Args:
        options: the options of ``apply_async``.
        run_seconds: the longest time that the handler may run, in seconds.
        visibility_timeout: seconds after which Redis redelivers a message that is not acknowledged.
        zone: time zone of datetimes that have none.
        now: the time by the reference clock.

    Raises:
        InvalidMessage: the message is due too late.
    """
    wait = _wait(options, zone, now)
    if wait > 0 and wait + run_seconds >= visibility_timeout:
        raise InvalidMessage(
            f"a message that is due in {wait:g} s and may run for {run_seconds:g} s would be redelivered "
            f"after {visibility_timeout:g} s: shorten its delay, or raise "
            "broker_transport_options['visibility_timeout']"
        )


def parse_datetime(value: object, zone: tzinfo) -> datetime | None:
    """Return the datetime that Celery reads from seconds from now, a timedelta, a datetime or an ISO 8601 string.

    Args:
        value: one of these, or None.
        zone: time zone of a datetime that has none; Celery uses the application's.

    Raises:
        InvalidMessage: the value is none of these.
    """
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return datetime.now(UTC) + timedelta(seconds=value)
    if isinstance(value, timedelta):
        return datetime.now(UTC) + value
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError as error:
        raise InvalidMessage(f"{value!r} is not an ISO 8601 datetime") from error
    if not isinstance(at, datetime):
        raise InvalidMessage(
            f"a time must be seconds, a timedelta, a datetime or an ISO 8601 string, not {value!r}"
        )
    return at if at.tzinfo else at.replace(tzinfo=zone)


def _ttl(options: PublishArguments, default: float | None, zone: tzinfo, now: datetime) -> float | None:
    """Return the seconds from now until a ``.delay`` expires, or None."""
    expires = options.get("expires")
    if isinstance(expires, int | float):
        return expires
    if isinstance(expires, timedelta):
        return expires.total_seconds()
    at = parse_datetime(expires, zone)
    if at is not None:
        return (at - now).total_seconds()
    # Celery passes None when ``expires`` is left out, so a message without expiry is sent as a Message.
    # The default counts from the time at which the message may first be handled.
    return None if default is None else default + _wait(options, zone, now)


def _wait(options: PublishArguments, zone: tzinfo, now: datetime) -> float:
    """Return the seconds until a message may first be handled."""
    eta = parse_datetime(options.get("eta"), zone)
    wait = (eta - now).total_seconds() if eta else options.get("countdown") or 0
    return max(float(wait), 0.0)
