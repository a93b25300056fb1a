"""`completion`: print the script with which a shell completes commands, options and names of agents."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from waooaw_celery.cli.base.command import Command

#: The variable with which the script asks the program for completions.
COMPLETE_VARIABLE = "_WAOOAW_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command(
    cls=Command,
    examples=["waooaw completion bash", "waooaw completion fish"],
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL. docs/commands.md says where to put it.

    Bash must be 4.4 or newer.
    """
    found = get_completion_class(shell)
    if found is None:  # click knows all of SHELLS
        raise click.UsageError(f"click has no completion for {shell}")
    completer = found(ctx.find_root().command, {}, "waooaw", COMPLETE_VARIABLE)
    # Not the class's own source(): it runs bash to look at its version, and this computer may have another.
    click.echo(ShellComplete.source(completer))
