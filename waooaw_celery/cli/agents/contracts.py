"""`contracts`: the contracts of the methods of agents: printed, compared, or as AsyncAPI."""

from __future__ import annotations

import json
from typing import IO, Any

import click

from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.base.exit_codes import CommandError, ExitCode
from waooaw_celery.cli.base.parameters import AGENT
from waooaw_celery.cli.group import current_app
from waooaw_celery.cli.output import echo, print_json, table_options
from waooaw_celery.cli.output.table import show_table
from waooaw_celery.discovery.agent_info import AgentInfo
from waooaw_celery.discovery.contracts.asyncapi import asyncapi_document
from waooaw_celery.discovery.contracts.compare import breaking_changes
from waooaw_celery.discovery.contracts.documents import contracts_document
from waooaw_celery.discovery.registry import Registry
from waooaw_celery.messages.log.escaping import escaped
from waooaw_celery.messages.wording import counted


@click.command(cls=Command, examples=["waooaw contracts greeter", "waooaw contracts --check old.json"])
@click.argument("name", metavar="[AGENT]", type=AGENT, required=False)
@click.option("--asyncapi", is_flag=True, help="Print an AsyncAPI 3 document of all agents, methods and topics.")
@click.option(
    "--check",
    type=click.File("r", encoding="utf-8"),
    metavar="OLD.json",
    help="Print the changes since OLD.json that break callers. The exit code is 1 if there are any.",
)
@table_options
@click.pass_context
def contracts(ctx: click.Context, name: str | None, asyncapi: bool, check: IO[str] | None, as_json: bool) -> None:
    """Print the contracts of the methods of all agents, or of AGENT. --json prints what --check compares."""
    if asyncapi and check is not None:
        raise click.UsageError("give either --asyncapi or --check")
    app = current_app(ctx)
    registry = Registry(app)
    agents = registry.list() if name is None else [registry.get(name)]
    if asyncapi:
        print_json(asyncapi_document(agents, app.subscriptions.read().schemas, title=app.main or "Agents"))
        return
    document = contracts_document(agents)
    if check is not None:
        _check(document, check, name, as_json)
    elif as_json:
        print_json(document)
    else:
        _show(agents, document)


def _check(document: dict[str, Any], check: IO[str], name: str | None, as_json: bool) -> None:
    try:
        old = json.load(check)
    except ValueError as error:
        raise CommandError(escaped(f"{check.name} is not JSON: {error}"), ExitCode.USAGE) from error
    if name is not None and isinstance(old, dict) and isinstance(old.get("agents"), dict):
        old = {**old, "agents": {agent: each for agent, each in old["agents"].items() if agent == name}}
    found = breaking_changes(old, document)
    if as_json:
        print_json([{"where": each.where, "what": each.what} for each in found])
    else:
        for each in found:
            echo(str(each))
        echo(f"{counted(len(found), 'change')} would break callers." if found else "No change breaks callers.")
    if found:
        raise SystemExit(ExitCode.FAILED)


def _show(agents: list[AgentInfo], document: dict[str, Any]) -> None:
    rows = []
    for info in agents:
        by_method = {each.method: str(each) for each in info.capabilities}
        for method, contract in document["agents"][info.name]["methods"].items():
            answer = contract.get("part", contract["result"])
            rows.append(
                (
                    f"{info.name}.{method}",
                    by_method.get(method),
                    _signature(contract["parameters"]),
                    ("parts: " if "part" in contract else "") + _type(answer),
                    contract.get("description"),
                )
            )
    show_table(f"Contracts ({len(rows)})", ("method", "capability", "parameters", "answer", "description"), rows)


def _signature(parameters: dict[str, Any]) -> str:
    required = parameters.get("required", ())
    told = [
        f"{name}{'' if name in required else '?'}: {_type(each)}"
        for name, each in parameters["properties"].items()
    ]
    if parameters.get("additionalProperties") is not False:
        told.append("…")
    return ", ".join(told)


def _type(schema: Any) -> str:
    if not isinstance(schema, dict) or not schema:
        return "any"
    if "anyOf" in schema:
        return " | ".join(_type(each) for each in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return " | ".join(repr(each) for each in schema["enum"])
    if schema.get("type") == "array":
        return f"[{_type(schema.get('items'))}]"
    found = schema.get("format") or schema.get("type", "any")
    return found if isinstance(found, str) else " | ".join(found)
