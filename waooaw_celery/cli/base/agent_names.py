"""The names of the known agents, for a shell that completes them: quick, and silent if no server answers."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import closing, redirect_stderr, suppress
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from waooaw_celery.app.app import AgentApp

#: Seconds within which the servers must answer.
SECONDS = 1.0


def known_agents(ctx: click.Context) -> list[str]:
    """Return the names of the known agents, sorted; none if they cannot be read within a second.

    Args:
        ctx: the context of the command whose arguments are completed. Its group has not run.
    """
    found: list[str] = []
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        # The shell would show an error, or a warning, in the middle of the line that is being typed.
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            redirect_stderr(nowhere),
            suppress(Exception),
            closing(_app(ctx)) as app,
        ):
            reader = threading.Thread(target=_read, args=(app, found), daemon=True)
            reader.start()  # it does not keep the process from ending
            reader.join(SECONDS)
            return list(found)
    finally:
        logging.disable(disabled)
    return []


def _read(app: AgentApp, found: list[str]) -> None:
    with suppress(Exception):
        found.extend(sorted(record.name for record in app.registry.everywhere()))


def _app(ctx: click.Context) -> AgentApp:
    from waooaw_celery.cli.group import application

    options = ctx.find_root().params
    return application(ctx, options.get("app_name"), options.get("broker"))
