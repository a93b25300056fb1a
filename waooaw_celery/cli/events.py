"""`events`: topics, subscriptions and schemas; publish events, and replay them."""

from __future__ import annotations

import json
from datetime import datetime

import click

from waooaw_celery.agents.events.bus import EventBus
from waooaw_celery.app.app import AgentApp
from waooaw_celery.cli.group import OPERATOR, current_app
from waooaw_celery.cli.ledger import TimeParam
from waooaw_celery.cli.messages import JsonParam
from waooaw_celery.cli.output import ago, console, json_option, print_json, show_table
from waooaw_celery.ledger.event_log import EventLog, SubscriberStatistics
from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.validation import JSON
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
@json_option
@click.pass_context
def topics(ctx: click.Context, since: datetime | None, until: datetime | None, as_json: bool) -> None:
    """Count the published events, and what became of them, by topic and subscriber. Needs a ledger."""
    found = EventLog(current_app(ctx).ledger).statistics(since, until)
    if as_json:
        print_json(found)
        return
    rows: list[tuple[object, ...]] = []
    for topic in found:
        rows.append((topic.topic, topic.published, "", "", "", "", "", ago(topic.last_at)))
        rows += [("", *_counts(each)) for each in topic.subscribers]
    columns = ("topic", "published", "delivered", "handled", "failed", "waiting", "lag", "last, or subscriber")
    show_table(console(), f"Topics ({len(found)})", columns, rows)


@events.command()
@json_option
@click.pass_context
def subscriptions(ctx: click.Context, as_json: bool) -> None:
    """List the subscriptions with their state, patterns and filter."""
    found = EventBus(current_app(ctx)).subscriptions()
    if as_json:
        print_json([_plain(each) for each in found])
        return
    rows = [(each.subscriber, _state(each), ", ".join(each.patterns), _filter(each)) for each in found]
    show_table(console(), f"Subscriptions ({len(rows)})", ("subscriber", "state", "topics", "where"), rows)


@events.command()
@_subscriber
@click.pass_context
def unsubscribe(ctx: click.Context, subscriber: str) -> None:
    """Remove a subscription. It stays removed when its agent starts again."""
    app = current_app(ctx)
    found = EventBus(app).unsubscribe(subscriber)
    waiting = EventLog(app.ledger).waiting(found.target) if app.settings.database_url is not None else None
    count = "" if waiting is None else f" ({waiting} messages)"
    click.echo(f"{subscriber} gets no more events after one second. It still handles what was sent before{count}.")


@events.command()
@_subscriber
@click.pass_context
def resubscribe(ctx: click.Context, subscriber: str) -> None:
    """Restore a removed subscription, for events from now on."""
    EventBus(current_app(ctx)).resubscribe(subscriber)
    click.echo(f"{subscriber} gets events again, within one second.")


@events.command()
@json_option
@click.pass_context
def schemas(ctx: click.Context, as_json: bool) -> None:
    """List the JSON Schemas of the topics, the newest version of each last."""
    found = sorted(current_app(ctx).subscriptions.read().schemas, key=lambda schema: schema.topic)
    if as_json:
        print_json(found)
        return
    rows = [(each.topic, each.version, each.check, json.dumps(each.schema, ensure_ascii=False)) for each in found]
    show_table(console(), f"Schemas ({len(rows)})", ("topic", "version", "checked at", "schema"), rows)


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
    click.echo(f"{published.event_id} to {subscribers or 'nobody: no subscription matches'}")


@events.command()
@_subscriber
@_since
@_until
@click.option("--conversation", metavar="ID", help="Only events of this conversation, message or correlation id.")
@click.option("--topic", default="#", help="Only events whose topic matches this pattern.")
@click.option(
    "--where", type=JsonParam(), help='Only events that match a filter, such as {"order.total": {"gte": 100}}.'
)
@click.option("--per-second", type=float, help="Events per second.")
@click.option("--speed", type=float, help="Speed, as a multiple of the original pace.")
@click.option("--dry-run", is_flag=True, help="Only count the events.")
@_from
@json_option
@click.pass_context
def replay(
    ctx: click.Context,
    subscriber: str,
    since: datetime | None,
    until: datetime | None,
    conversation: str | None,
    topic: str,
    where: JSON,
    per_second: float | None,
    speed: float | None,
    dry_run: bool,
    from_agent: str | None,
    as_json: bool,
) -> None:
    """Send events from the ledger to one subscriber again, oldest first. They are marked as a replay."""
    app = current_app(ctx)
    done = EventBus(app).replay(
        subscriber,
        since=since,
        until=until,
        conversation=conversation,
        topic=topic,
        where=where,
        per_second=per_second,
        speed=speed,
        from_agent=_sender(app, from_agent),
        dry_run=dry_run,
    )
    if as_json:
        print_json(done)
        return
    span = ""
    if done.first_at is not None and done.last_at is not None:
        span = f" from {done.first_at:%F %T} to {done.last_at:%F %T} UTC"
    sent = "would be sent" if dry_run else "were sent"
    click.echo(f"{done.events} events{span} {sent} to {done.subscriber} again.")


def _sender(app: AgentApp, from_agent: str | None) -> str:
    return from_agent or app.settings.sender or OPERATOR


def _counts(each: SubscriberStatistics) -> tuple[object, ...]:
    lag = "" if each.lag_seconds is None else f"{each.lag_seconds:.0f} s"
    return ("", each.delivered, each.handled, each.failed, each.waiting, lag, each.subscriber)


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
