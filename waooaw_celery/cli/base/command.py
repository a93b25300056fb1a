"""The classes of commands and groups, whose help ends with examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

#: How many examples the help of a group takes from its commands.
MAX_TAKEN = 2


class Command(click.Command):
    """A command whose help ends with examples.

    Args:
        examples: whole lines for a shell, which begin with ``waooaw``. Tests parse them.

    Example:
        >>> @click.command(cls=Command, examples=["waooaw receipt 0198c0f2-7a51-7d5e-8d8c-0d7f2f3f7a10"])
        ... def receipt() -> None: ...
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the options."""
        super().format_epilog(ctx, formatter)
        write_examples(formatter, self.examples)


class CommandGroup(click.Group):
    """A group of commands. Without examples of its own, its help ends with those of its first commands.

    Args:
        examples: as for ``Command``.

    Example:
        >>> @click.group(cls=CommandGroup)
        ... def dead() -> None: ...
        >>> @dead.command(examples=["waooaw dead show 1795908851841-0"])
        ... def show() -> None: ...
    """

    command_class = Command

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the list of commands."""
        super().format_epilog(ctx, formatter)
        taken = [
            each.examples[0] for each in self.commands.values() if isinstance(each, Command) and each.examples
        ]
        write_examples(formatter, self.examples or taken[:MAX_TAKEN])


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write examples as a section of a help text, each on one line, however long: so it can be copied."""
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"{' ' * formatter.current_indent}{example}\n")
