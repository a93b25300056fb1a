"""`scale`: how many messages an agent's workers handle at once."""

from __future__ import annotations

import click

from waooaw_celery.agents.scaling.agent_pool import AgentPool
from waooaw_celery.agents.scaling.pool_size import PoolSize
from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.base.parameters import AGENT
from waooaw_celery.cli.group import current_app
from waooaw_celery.cli.output import echo, print_json, table_options
from waooaw_celery.cli.output.table import show_table


@click.command(cls=Command, examples=["waooaw scale greeter", "waooaw scale greeter 8"])
@click.argument("agent", type=AGENT)
@click.argument("n", type=int, required=False)
@click.option(
    "--min", "minimum", type=int, help="Let the workers scale themselves: the least size of all together."
)
@click.option("--max", "maximum", type=int, help="Let the workers scale themselves: the largest size.")
@click.option(
    "--timeout", type=float, default=5.0, show_default=True, help="Seconds to wait for the answers of the workers."
)
@table_options
@click.pass_context
def scale(
    ctx: click.Context,
    agent: str,
    n: int | None,
    minimum: int | None,
    maximum: int | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Have the workers of AGENT handle N messages at once, all together. Without N, show how many they handle.

    A handler that runs is not interrupted: its process ends after it. A worker that starts again has the size of
    its option -c or --autoscale. Workers with the pools solo and threads cannot change their size.
    """
    pool = AgentPool(current_app(ctx), agent, timeout=timeout)
    if n is not None and (minimum, maximum) != (None, None):
        raise click.UsageError("give N, or --min and --max")
    if n is not None:
        size = pool.resize(n)
    elif minimum is not None and maximum is not None:
        size = pool.autoscale(minimum, maximum)
    elif (minimum, maximum) != (None, None):
        raise click.UsageError("give both --min and --max")
    else:
        size = pool.size()
    if as_json:
        print_json(size)
        return
    _show(size)


def _show(size: PoolSize) -> None:
    rows = [
        (
            name,
            pool.kind,
            pool.size,
            pool.busy,
            pool.leaving,
            "" if pool.maximum is None else f"{pool.minimum} to {pool.maximum}",
        )
        for name, pool in size.workers.items()
    ]
    columns = ("worker", "pool", "size", "busy", "leaving", "scales itself")
    show_table(f"{size.agent}: {size.total} at once", columns, rows)
    if any(pool.leaving for pool in size.workers.values()):
        echo("A process that leaves ends after the message that it handles.")
