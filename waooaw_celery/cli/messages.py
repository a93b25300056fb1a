"""`send`, `broadcast`, `request`, `receipt` and `cancel`: the messaging API from the shell."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from waooaw_celery.agents.bus import Everyone, MessageBus
from waooaw_celery.agents.requests.handler import RequestResponseHandler
from waooaw_celery.app.app import AgentApp
from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.base.exit_codes import ExitCode, exit_code
from waooaw_celery.cli.base.parameters import AGENT
from waooaw_celery.cli.group import OPERATOR, current_app
from waooaw_celery.cli.output import echo_lines, json_option, print_json, table_options
from waooaw_celery.cli.output.table import show_facts, show_table
from waooaw_celery.errors import RemoteError
from waooaw_celery.messages.enums import SENDABLE, MessageStatus, MessageType, Priority
from waooaw_celery.messages.queues import takes_message
from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.messages.validation import JSON
from waooaw_celery.messages.wording import counted

_from = click.option("--from", "from_agent", type=AGENT, help="The sender.  [default: waooaw_sender, or operator]")
_priority = click.option(
    "--priority",
    type=click.Choice([priority.name.lower() for priority in Priority], case_sensitive=False),
    default="normal",
    show_default=True,
)
_type = click.option(
    "--type",
    "message_type",
    type=click.Choice([type_.value for type_ in SENDABLE], case_sensitive=False),
    default="command",
    show_default=True,
)


class JsonParam(click.ParamType[JSON]):
    """A command-line argument that is a JSON value, or ``-`` to read it from standard input."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> JSON:
        """Parse the value; the error names the position of the mistake."""
        text = sys.stdin.buffer.read().decode("utf-8", "replace") if value == "-" else value
        if not isinstance(text, str):
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            self.fail(f"{text:.60} is not JSON ({error}): write a string as '\"text\"'", param, ctx)


@click.command(
    cls=Command,
    examples=[
        "waooaw send greeter '{\"task\": 8}' --priority high",
        "waooaw send 'capability:summarise@>=2' - --from boss",
    ],
)
@click.argument("to_agent", type=AGENT)
@click.argument("payload", type=JsonParam())
@_from
@_priority
@_type
@click.option(
    "--ttl", type=float, help="Seconds until the message expires; 0: never.  [default: waooaw_ttl_seconds]"
)
@click.option("--correlation-id", help="Id that ties this message to others.")
@table_options
@click.pass_context
def send(
    ctx: click.Context,
    to_agent: str,
    payload: JSON,
    from_agent: str | None,
    priority: str,
    message_type: str,
    ttl: float | None,
    correlation_id: str | None,
    as_json: bool,
) -> None:
    """Send PAYLOAD to the agent TO_AGENT. PAYLOAD is a JSON value, or - for standard input.

    TO_AGENT may be a capability, such as 'capability:summarise@>=2': one of the agents with it gets the message.
    """
    app = current_app(ctx)
    default_ttl = app.settings.ttl_seconds
    receipt = MessageBus(app).send_to(
        from_agent or _sender(app),
        to_agent,
        payload,
        message_type=MessageType(message_type),
        priority=Priority.of(priority),
        ttl_seconds=default_ttl if ttl is None else ttl or None,
        correlation_id=correlation_id,
    )
    _show(receipt, as_json)


@click.command(
    cls=Command,
    examples=[
        "waooaw broadcast '{\"task\": 8}' --to greeter --to planner",
        "waooaw broadcast '{}' --capability summarise",
    ],
)
@click.argument("payload", type=JsonParam())
@click.option("--to", "to_agents", type=AGENT, multiple=True, help="A recipient; repeat it for several.")
@click.option("--all", "everyone", is_flag=True, help="Send to all agents that handle this type.")
@click.option(
    "--capability", metavar="TAG", help="Send to all agents that handle this type and have this capability."
)
@_from
@_priority
@_type
@click.option(
    "--ttl", type=float, help="Seconds until the message expires; 0: never.  [default: waooaw_ttl_seconds]"
)
@table_options
@click.pass_context
def broadcast(
    ctx: click.Context,
    payload: JSON,
    to_agents: tuple[str, ...],
    everyone: bool,
    capability: str | None,
    from_agent: str | None,
    priority: str,
    message_type: str,
    ttl: float | None,
    as_json: bool,
) -> None:
    """Send PAYLOAD to several agents, one message to each. PAYLOAD is a JSON value, or - for standard input."""
    if bool(to_agents) == (everyone or capability is not None):
        raise click.UsageError("give either --to AGENT (once or more), or --all or --capability TAG")
    app = current_app(ctx)
    default_ttl = app.settings.ttl_seconds
    receipts = MessageBus(app).broadcast(
        from_agent or _sender(app),
        list(to_agents) or Everyone(capability),
        payload,
        message_type=MessageType(message_type),
        priority=Priority.of(priority),
        ttl_seconds=default_ttl if ttl is None else ttl or None,
    )
    if as_json:
        print_json(receipts)
        return
    rows = [(agent, receipt.status, receipt.message_id) for agent, receipt in receipts.items()]
    show_table(f"Sent to {counted(len(rows), 'agent')}", ("agent", "status", "id"), rows)


@click.command(cls=Command, examples=['waooaw request greeter greet \'{"name": "Ada"}\' --timeout 10'])
@click.argument("to_agent", type=AGENT)
@click.argument("method")
@click.argument("params", type=JsonParam(), default="{}")
@_from
@_priority
@click.option("--timeout", type=float, help="Seconds to wait.  [default: waooaw_request_timeout]")
@json_option
@click.pass_context
def request(
    ctx: click.Context,
    to_agent: str,
    method: str,
    params: JSON,
    from_agent: str | None,
    priority: str,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Call METHOD of the agent TO_AGENT with PARAMS, a JSON object, and print the result."""
    if not isinstance(params, dict):
        raise click.BadParameter(
            "must be a JSON object whose keys are the method's parameters", param_hint="PARAMS"
        )
    app = current_app(ctx)
    response = RequestResponseHandler(app).send_request(
        to_agent,
        method,
        params,
        from_agent=from_agent or _sender(app),
        timeout=timeout,
        priority=Priority.of(priority),
    )
    if as_json:
        print_json({**response.to_dict(), "ok": response.ok})
        ctx.exit(ExitCode.DONE if response.error is None else exit_code(response.error))
    if response.error is not None:
        if isinstance(response.error, RemoteError) and response.error.traceback:
            echo_lines(response.error.traceback, err=True)
        raise response.error
    print_json(response.result)


@click.command(cls=Command, examples=["waooaw receipt 0198c0f2-7a51-7d5e-8d8c-0d7f2f3f7a10"])
@click.argument("message_id")
@table_options
@click.pass_context
def receipt(ctx: click.Context, message_id: str, as_json: bool) -> None:
    """Show the receipt of the message MESSAGE_ID."""
    _show(MessageBus(current_app(ctx)).receipt(message_id), as_json)


@click.command(cls=Command, examples=["waooaw cancel 0198c0f2-7a51-7d5e-8d8c-0d7f2f3f7a10 --running"])
@click.argument("message_id")
@click.option("--running", is_flag=True, help="Also stop its handler if it is running.")
@click.option(
    "--timeout", type=float, default=1.0, show_default=True, help="Seconds to wait for the workers' replies."
)
@_from
@table_options
@click.pass_context
def cancel(
    ctx: click.Context, message_id: str, running: bool, timeout: float, from_agent: str | None, as_json: bool
) -> None:
    """Cancel the message MESSAGE_ID: no worker begins it, and it is not retried."""
    app = current_app(ctx)
    sender = from_agent or _sender(app)
    _show(MessageBus(app).cancel(message_id, running=running, timeout=timeout, from_agent=sender), as_json)


def _sender(app: AgentApp) -> str:
    return app.settings.sender or OPERATOR


def _show(receipt: DeliveryReceipt, as_json: bool) -> None:
    if as_json:
        print_json(receipt)
        return
    facts = asdict(receipt)
    del facts["message_id"]
    if receipt.status in (MessageStatus.FAILED, MessageStatus.DEAD) and takes_message(receipt.handler):
        facts["dead letter"] = f"waooaw dead list --message {receipt.message_id}"
    show_facts(f"Message {receipt.message_id}", [(name.replace("_", " "), value) for name, value in facts.items()])
