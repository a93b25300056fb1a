"""What the pages of the reference are made of at build time, as directives of Markdown.

``{public-api}`` documents the names in its content, ``{command-help}`` the commands of `waooaw`, and
``{ledger-tables}`` the tables of the ledger.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sqlalchemy.dialects import postgresql

#: The module whose names have pages.
PUBLIC = "waooaw_celery.agents"


class Generated(SphinxDirective):
    """A directive whose content is Markdown that ``lines`` returns."""

    def run(self) -> list[nodes.Node]:
        """Parse the lines as if they stood in the page."""
        container = nodes.section()
        container.document = self.state.document
        self.state.nested_parse(list(self.lines()), self.content_offset, container, match_titles=True)
        return list(container.children)

    def lines(self) -> Iterator[str]:
        """Yield the lines of Markdown."""
        raise NotImplementedError


class PublicApi(Generated):
    """The docstrings of public names: the argument is their module, the content the names."""

    has_content = True
    required_arguments = 1

    def lines(self) -> Iterator[str]:
        """Yield a directive of autodoc for each name."""
        module = self.arguments[0]
        for name in [word for line in self.content for word in line.split()]:
            yield "```{eval-rst}"
            yield from _autodoc(module, name, getattr(import_module(module), name))
            yield "```"
            yield ""


def _autodoc(module: str, name: str, value: Any) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f".. autofunction:: {module}.{name}"
        return
    is_error = issubclass(value, Exception)
    yield f".. {'autoexception' if is_error else 'autoclass'}:: {module}.{name}"
    yield "   :members:"
    yield f"   :exclude-members: {', '.join(['__new__', '__init__', *getattr(value, '_fields', ())])}"
    if not is_error and not issubclass(value, (tuple, Enum)):
        yield "   :inherited-members: Celery"
    if is_error:
        yield "   :show-inheritance:"


class CommandHelp(Generated):
    """The usage, the options and the examples of every command, as `--help` prints them."""

    def lines(self) -> Iterator[str]:
        """Yield a section for each command of the first level, with those below it."""
        from waooaw_celery.cli import waooaw

        context = click.Context(waooaw, info_name="waooaw", terminal_width=88)
        for name in waooaw.list_commands(context):
            command = waooaw.get_command(context, name)
            if command is not None and not command.hidden:
                yield f"## waooaw {name}"
                yield ""
                yield from _help(command, name, context)


def _help(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=88)
    yield "```text"
    yield from command.get_help(context).splitlines()
    yield "```"
    yield ""
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            if found is not None and not found.hidden:
                yield from _help(found, each, context)


class LedgerTables(Generated):
    """The tables of the ledger, with their columns, what the code says about each, and their indexes."""

    def lines(self) -> Iterator[str]:
        """Yield a section for each table."""
        for mapper in sorted(ledger_mappers(), key=lambda mapper: str(mapper.local_table)):
            table, model = mapper.local_table, mapper.class_
            said = ModuleAnalyzer.for_module(model.__module__).find_attr_docs()
            yield f"## {table.name}"
            yield ""
            yield from inspect.cleandoc(model.__doc__).splitlines()
            yield ""
            yield "| column | type | |"
            yield "| --- | --- | --- |"
            for column in table.columns:
                facts = [
                    *(["primary key"] if column.primary_key else []),
                    *(["may be NULL"] if column.nullable else []),
                    " ".join(said.get((model.__name__, column.key), [])).strip(),
                ]
                told = "; ".join(fact for fact in facts if fact).replace("|", "\\|").replace("``", "`")
                yield f"| `{column.name}` | {column.type.compile(postgresql.dialect())} | {told} |"
            yield ""
            for index in sorted(table.indexes, key=lambda index: str(index.name)):
                columns = ", ".join(str(getattr(each, "name", each)) for each in index.expressions)
                yield f"- Index `{index.name}`: {columns}"
            yield ""


def ledger_mappers() -> list[Any]:
    """Return the mappers of all tables of the ledger."""
    import_module("waooaw_celery.ledger.ledger")
    import_module("waooaw_celery.ledger.workflow_models")
    import_module("waooaw_celery.agents.agent")
    return list(import_module("waooaw_celery.ledger.database.models").Base.registry.mappers)


def link_to_public_name(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """Let a type lead to the page of its public name: Message is defined in another module than it is offered."""
    name = str(node.get("reftarget", "")).rpartition(".")[2]
    public = import_module("waooaw_celery.agents")
    if (
        node.get("refdomain") != "py"
        or name not in public.__all__
        or node["reftarget"].startswith(f"{PUBLIC}.{name}")
    ):
        return None
    return env.domains["py"].resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], f"{PUBLIC}.{name}", node, content
    )


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directives."""
    app.add_directive("public-api", PublicApi)
    app.add_directive("command-help", CommandHelp)
    app.add_directive("ledger-tables", LedgerTables)
    app.connect("missing-reference", link_to_public_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
