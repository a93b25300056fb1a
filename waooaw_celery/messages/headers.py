"""Which message a publish of Celery is: made from a `.delay`, read back for a retry, threaded to its cause."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.message import ENVELOPE_HEADER, Message, MessageType, RetentionPolicy
from waooaw_celery.messages.queues import HandlerName, takes_message
from waooaw_celery.messages.validation import JSON

#: The options of ``apply_async``, as Celery hands them on.
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
    """Make the message of a ``.delay`` or ``apply_async``.

    Args:
        target: the handler that is called.
        args: its positional arguments; a message's payload is the only one.
        kwargs: its keyword arguments.
        options: the options of the call.
        sender: who speaks.
        default_ttl: seconds until it expires, when the options do not say; None: never.
        zone: of moments in the options that have none.
        now: the time by the reference clock: a moment in the options is one by that clock too.

    Raises:
        InvalidMessage: an argument is no JSON value, or an option breaks a rule.
    """
    if target.message_type is MessageType.EVENT:
        raise InvalidMessage(
            f"{target} gets what is published: EventBus(app).publish(topic, event), or replay it to one subscriber"
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
        **fields,
    )


def message_of_retry(target: HandlerName, args: Any, kwargs: Any, options: PublishArguments) -> Message:
    """Return the message that a retry publishes again: everything but the attempt is as it was.

    Raises:
        InvalidMessage: it came with an envelope that this version cannot read.
    """
    headers = {
        "id": options["task_id"],
        "root_id": options.get("root_id"),
        "parent_id": options.get("parent_id"),
        ENVELOPE_HEADER: (options.get("headers") or {}).get(ENVELOPE_HEADER),
    }
    return Message.from_headers(headers, target.agent, payload_of(target.handler, args or (), kwargs or {}))


def threaded(
    target: HandlerName,
    message: Message,
    cause: Message | None,
    retention: RetentionPolicy | None,
    sent_at: datetime,
) -> Message:
    """Fill in when a message is sent, how long it is kept, and the ids that thread it to the one being handled.

    Args:
        target: the handler that it is for. The correlation id of a request is its own id, the key of its answer.
        message: the new message; ids that it has already are left.
        cause: the message that is being handled, or None outside of handlers.
        retention: how long it is kept, or None without a ledger.
        sent_at: when it is sent.
    """
    inherited = cause.correlation_id if cause and takes_message(target.handler) else None
    return message.filled_in(
        retention=retention,
        sent_at=sent_at,
        correlation_id=message.correlation_id or inherited or message.message_id,
        conversation_id=message.conversation_id or (cause.conversation_id if cause else message.message_id),
        causation_id=message.causation_id or (cause.message_id if cause else None),
    )


def payload_of(handler: str, args: Any, kwargs: Any) -> JSON:
    """Return what a call of a handler says: the payload itself, or a method's parameters.

    Args:
        handler: name of the handler.
        args: positional arguments of the task; a message's payload is the only one.
        kwargs: keyword arguments of the task.
    """
    if takes_message(handler) and len(args) == 1 and not kwargs:
        return args[0]
    return {"args": list(args), "kwargs": dict(kwargs)} if args else dict(kwargs)


def check_delay(
    options: PublishArguments, run_seconds: float, visibility_timeout: float, zone: tzinfo, now: datetime
) -> None:
    """Refuse an ``eta`` or ``countdown`` that Redis would hand out again and again.

    A worker keeps a message unacknowledged until it is due and was handled; after the visibility timeout Kombu on
    Redis takes it for lost.

    Args:
        options: the options of the call.
        run_seconds: how long its handler may then run.
        visibility_timeout: seconds after which Redis hands out again what is not acknowledged.
        zone: of moments that have none.
        now: the time.

    Raises:
        InvalidMessage: it is due too late.
    """
    wait = _wait(options, zone, now)
    if wait > 0 and wait + run_seconds >= visibility_timeout:
        raise InvalidMessage(
            f"a message that is due in {wait:g} s and may run for {run_seconds:g} s would be handed out again "
            f"after {visibility_timeout:g} s: send it later, or raise "
            "broker_transport_options['visibility_timeout']"
        )


def parse_datetime(value: object, zone: tzinfo) -> datetime | None:
    """Read Celery's forms of a moment: seconds from now, a timedelta, a datetime or its ISO 8601 text.

    Args:
        value: one of these, or None.
        zone: of a datetime that has none, as Celery reads it: the application's timezone.

    Raises:
        InvalidMessage: it is none of these.
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
        raise InvalidMessage(f"{value!r} is no moment in ISO 8601") from error
    if not isinstance(at, datetime):
        raise InvalidMessage(f"a moment is seconds, a timedelta, a datetime or ISO 8601 text, not {value!r}")
    return at if at.tzinfo else at.replace(tzinfo=zone)


def _ttl(options: PublishArguments, default: float | None, zone: tzinfo, now: datetime) -> float | None:
    """Return after how many seconds from now a ``.delay`` expires."""
    expires = options.get("expires")
    if isinstance(expires, int | float):
        return expires
    if isinstance(expires, timedelta):
        return expires.total_seconds()
    at = parse_datetime(expires, zone)
    if at is not None:
        return (at - now).total_seconds()
    # Celery gives None for "not said" too: a message that shall never expire is sent with a Message.
    # The default counts from the moment at which the message may first be handled.
    return None if default is None else default + _wait(options, zone, now)


def _wait(options: PublishArguments, zone: tzinfo, now: datetime) -> float:
    """Return the seconds until a message may first be handled."""
    eta = parse_datetime(options.get("eta"), zone)
    wait = (eta - now).total_seconds() if eta else options.get("countdown") or 0
    return max(float(wait), 0.0)
