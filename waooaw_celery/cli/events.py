"""`events`: topics, subscriptions and schemas; publish events, and replay them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click

from waooaw_celery.agents.events.bus import EventBus
from waooaw_celery.app.app import AgentApp
from waooaw_celery.cli.group import OPERATOR, current_app
from waooaw_celery.cli.ledger.times import TimeParam
from waooaw_celery.cli.messages import JsonParam
from waooaw_celery.cli.output import ago, echo, json_option, print_json, table_options
from waooaw_celery.cli.output.table import show_table
from waooaw_celery.ledger.events.event_log import EventLog, SubscriberStatistics
from waooaw_celery.ledger.events.replays import Replay
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.validation import JSON
from waooaw_celery.messages.wording import counted
from waooaw_celery.store.subscriptions import Subscription

_from = click.option(
    "--from", "from_agent", metavar="AGENT", help="The sender.  [default: waooaw_sender, or operator]"
)
_since = click.option("--since", type=TimeParam(), help="Published at this time or later.")
_until = click.option("--until", type=TimeParam(), help="Published before this time.")
_subscriber = click.argument("subscriber", metavar="AGENT.NAME")


@click.group()
def events() -> None:
    """Publish and replay events, and manage subscriptions."""


@events.command()
@_since
@_until
@table_options
@click.pass_context
def topics(ctx: click.Context, since: datetime | None, until: datetime | None, as_json: bool) -> None:
    """Count the published events, and what became of them, by topic and subscriber. Needs a ledger."""
    found = EventLog(current_app(ctx).ledger).statistics(since, until)
    if as_json:
        print_json(found)
        return
    rows: list[tuple[object, ...]] = []
    for topic in found:
        rows.append((topic.topic, topic.published, None, None, None, None, None, ago(topic.last_at)))
        rows += [_counts(each) for each in topic.subscribers]
    columns = ("topic, or subscriber", "published", "delivered", "handled", "failed", "waiting", "lag", "last")
    show_table(f"Topics ({len(found)})", columns, rows)


@events.command()
@table_options
@click.pass_context
def subscriptions(ctx: click.Context, as_json: bool) -> None:
    """List the subscriptions with their state, patterns and filter."""
    found = EventBus(current_app(ctx)).subscriptions()
    if as_json:
        print_json([_plain(each) for each in found])
        return
    rows = [(each.subscriber, _state(each), ", ".join(each.patterns), _filter(each)) for each in found]
    show_table(f"Subscriptions ({len(rows)})", ("subscriber", "state", "topics", "where"), rows)


@events.command()
@_subscriber
@click.pass_context
def unsubscribe(ctx: click.Context, subscriber: str) -> None:
    """Remove a subscription. It stays removed when its agent starts again."""
    app = current_app(ctx)
    found = EventBus(app).unsubscribe(subscriber)
    waiting = EventLog(app.ledger).waiting(found.target) if app.settings.database_url is not None else None
    count = "" if waiting is None else f" ({counted(waiting, 'message')})"
    echo(f"{subscriber} gets no more events after one second. It still handles what was sent before{count}.")


@events.command()
@_subscriber
@click.pass_context
def resubscribe(ctx: click.Context, subscriber: str) -> None:
    """Restore a removed subscription, for events from now on."""
    EventBus(current_app(ctx)).resubscribe(subscriber)
    echo(f"{subscriber} gets events again, within one second.")


@events.command()
@table_options
@click.pass_context
def schemas(ctx: click.Context, as_json: bool) -> None:
    """List the JSON Schemas of the topics, the newest version of each last."""
    found = sorted(current_app(ctx).subscriptions.read().schemas, key=lambda schema: schema.topic)
    if as_json:
        print_json(found)
        return
    rows = [(each.topic, each.version, each.check, json.dumps(each.schema, ensure_ascii=False)) for each in found]
    show_table(f"Schemas ({len(rows)})", ("topic", "version", "checked at", "schema"), rows)


@events.command()
@click.argument("topic")
@click.argument("event", type=JsonParam())
@_from
@click.option(
    "--priority",
    type=click.Choice([priority.name.lower() for priority in Priority], case_sensitive=False),
    default="normal",
    show_default=True,
)
@click.option(
    "--ttl", type=float, help="Seconds until the event expires; 0: never.  [default: waooaw_event_ttl_seconds]"
)
@click.option("--schema-version", help="Version of the topic's schema.  [default: the newest]")
@json_option
@click.pass_context
def publish(
    ctx: click.Context,
    topic: str,
    event: JSON,
    from_agent: str | None,
    priority: str,
    ttl: float | None,
    schema_version: str | None,
    as_json: bool,
) -> None:
    """Publish EVENT to the subscribers of TOPIC. EVENT is a JSON value, or - for standard input."""
    app = current_app(ctx)
    published = EventBus(app).publish(
        topic,
        event,
        from_agent=_sender(app, from_agent),
        priority=Priority.of(priority),
        schema_version=schema_version,
        ttl_seconds=app.settings.event_ttl_seconds if ttl is None else ttl or None,
    )
    if as_json:
        print_json(published)
        return
    subscribers = ", ".join(published.receipts)
    echo(f"{published.event_id} to {subscribers or 'nobody: no subscription matches'}")


@events.command()
@_subscriber
@_since
@_until
@click.option("--conversation", metavar="ID", help="Only events of this conversation, message or correlation id.")
@click.option(
    "--id", "message_ids", multiple=True, help="Only this event; its id or a message's. May be repeated."
)
@click.option("--topic", default="#", help="Only events whose topic matches this pattern.")
@click.option(
    "--where", type=JsonParam(), help='Only events that match a filter, such as {"order.total": {"gte": 100}}.'
)
@click.option("--limit", type=click.IntRange(1), help="At most so many events, the oldest ones.")
@click.option("--per-second", type=float, help="Events per second.")
@click.option("--speed", type=float, help="Speed, as a multiple of the original rate.")
@click.option("--dry-run", is_flag=True, help="Only count the events.")
@click.option("--no-wait", is_flag=True, help="Let the system's worker send them, and return at once.")
@_from
@json_option
@click.pass_context
def replay(
    ctx: click.Context,
    /,
    subscriber: str,
    dry_run: bool,
    no_wait: bool,
    message_ids: tuple[str, ...],
    from_agent: str | None,
    as_json: bool,
    **selection: Any,
) -> None:
    """Send events from the ledger to one subscriber again, oldest first. They are marked as a replay."""
    app = current_app(ctx)
    selection |= {"message_ids": message_ids or None, "from_agent": _sender(app, from_agent), "dry_run": dry_run}
    if no_wait:
        asked = EventBus(app).replay(subscriber, **selection, wait=False)
        if as_json:
            print_json(asked)
        else:
            echo(
                f"{asked.replay_id} waits for the system's worker. To follow it: waooaw events replay-progress ID"
            )
        return
    done = EventBus(app).replay(subscriber, **selection)
    if as_json:
        print_json(done)
        return
    span = ""
    if done.first_at is not None and done.last_at is not None:
        span = f" from {done.first_at:%F %T} to {done.last_at:%F %T} UTC"
    be = "would be" if dry_run else "was" if done.events == 1 else "were"
    echo(f"{counted(done.events, 'event')}{span} {be} sent to {done.subscriber} again.")


@events.command()
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@table_options
@click.pass_context
def replays(ctx: click.Context, limit: int, as_json: bool) -> None:
    """List the replays of the system's worker, newest first. Needs a ledger."""
    found = EventBus(current_app(ctx)).replays(limit)
    if as_json:
        print_json(found)
        return
    rows = [
        (each.replay_id, each.subscriber, each.state, each.events, each.last_at, ago(each.created_at), each.error)
        for each in found
    ]
    columns = ("id", "subscriber", "state", "sent", "up to", "asked for", "error")
    show_table(f"Replays ({len(rows)})", columns, rows)


@events.command("replay-progress")
@click.argument("replay_id", metavar="ID")
@json_option
@click.pass_context
def replay_progress(ctx: click.Context, replay_id: str, as_json: bool) -> None:
    """Show the state of a replay, and how far it has come."""
    _show(EventBus(current_app(ctx)).replay_progress(replay_id), as_json)


@events.command("cancel-replay")
@click.argument("replay_id", metavar="ID")
@json_option
@click.pass_context
def cancel_replay(ctx: click.Context, replay_id: str, as_json: bool) -> None:
    """Cancel a replay. The events that it has sent are still handled."""
    _show(EventBus(current_app(ctx)).cancel_replay(replay_id), as_json)


def _show(each: Replay, as_json: bool) -> None:
    if as_json:
        print_json(each)
        return
    span = "" if each.last_at is None else f", up to {each.last_at:%F %T} UTC"
    error = "" if each.error is None else f": {each.error}"
    echo(f"{each.state}: {counted(each.events, 'event')} sent to {each.subscriber}{span}{error}")


def _sender(app: AgentApp, from_agent: str | None) -> str:
    return from_agent or app.settings.sender or OPERATOR


def _counts(each: SubscriberStatistics) -> tuple[object, ...]:
    lag = None if each.lag_seconds is None else f"{each.lag_seconds:.0f} s"
    return (f"  {each.subscriber}", None, each.delivered, each.handled, each.failed, each.waiting, lag, None)


def _state(each: Subscription) -> str:
    if each.removed_at is not None:
        return f"removed {ago(each.removed_at)}"
    return "catching up" if each.catch_up_from is not None else "active"


def _filter(each: Subscription) -> str:
    return "" if each.where is None else json.dumps(dict(each.where.where), ensure_ascii=False)


def _plain(each: Subscription) -> dict[str, JSON]:
    return {
        "subscriber": each.subscriber,
        "agent": each.agent,
        "name": each.name,
        "patterns": each.patterns,
        "where": each.where and dict(each.where.where),
        "subscribed_at": each.subscribed_at,
        "removed_at": each.removed_at,
        "catch_up_from": each.catch_up_from,
    }
