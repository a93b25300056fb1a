"""`init`: write a new project: an agent, its test, and a docker-compose.yml, ready to run."""

from __future__ import annotations

import keyword
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import click

from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.base.exit_codes import CommandError, ExitCode
from waooaw_celery.cli.output import echo, json_option, print_json
from waooaw_celery.messages.log.escaping import escaped

#: What stands for the project's name in the templates. Braces would clash with those of Compose and of Python.
PLACEHOLDER = "@PROJECT@"
#: Each file of a project, and its template.
FILES = {
    ".dockerignore": "dockerignore.template",
    ".gitignore": "gitignore.template",
    "Dockerfile": "Dockerfile.template",
    "README.md": "README.md.template",
    "docker-compose.yml": "docker-compose.yml.template",
    "pyproject.toml": "pyproject.toml.template",
    f"{PLACEHOLDER}/__init__.py": "package.py.template",
    f"{PLACEHOLDER}/greeter.py": "greeter.py.template",
    f"{PLACEHOLDER}/system.py": "system.py.template",
    "tests/conftest.py": "conftest.py.template",
    "tests/test_greeter.py": "test_greeter.py.template",
}
#: Names that would hide a package which the project imports, or its folder of tests.
_TAKEN = frozenset({"celery", "kombu", "pytest", "redis", "tests", "waooaw_celery"}) | sys.stdlib_module_names


@click.command(
    cls=Command,
    examples=["waooaw init my_agents"],
)
@click.argument("folder", metavar="NAME", type=click.Path(file_okay=False, path_type=Path))
@json_option
def init(folder: Path, as_json: bool) -> None:
    """Write a new project into the folder NAME: an agent, its test, and all that runs it.

    NAME is also the name of the Python package, such as my_agents. The folder must be new or empty.
    """
    name = folder.resolve().name
    _check_name(name)
    written = write_project(folder, name)
    if as_json:
        print_json({"folder": str(folder), "files": written})
        return
    echo(f"Wrote {len(written)} files into {folder}. Next: cd {folder}, and read README.md.")


def write_project(folder: Path, name: str) -> list[str]:
    """Write the files of a project, all or none, and return their paths below the folder, sorted.

    Args:
        folder: the folder, which must be new or empty.
        name: the name of the project's package.

    Raises:
        CommandError: the folder is not empty, or cannot be written.
    """
    templates = files("waooaw_celery.cli.project").joinpath("templates")
    texts = {
        path.replace(PLACEHOLDER, name): templates.joinpath(template)
        .read_text(encoding="utf-8")
        .replace(PLACEHOLDER, name)
        for path, template in FILES.items()
    }
    try:
        if folder.exists() and any(folder.iterdir()):
            raise CommandError(escaped(f"{folder} is not empty: nothing was written"), ExitCode.FAILED)
        _write(folder, texts)
    except OSError as error:
        raise CommandError(escaped(f"{folder} cannot be written: {error.strerror}")) from error
    return sorted(texts)


def _write(folder: Path, texts: dict[str, str]) -> None:
    """Write files into a folder; if one cannot be written, the folder is as before."""
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for path, text in texts.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError:
        for each in list(folder.iterdir()) if existed else [folder]:
            if each.is_dir():
                shutil.rmtree(each)
            else:
                each.unlink()
        raise


def _check_name(name: str) -> None:
    """Check that a project's name can be that of its package.

    Raises:
        UsageError: it cannot.
    """
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        raise click.UsageError(escaped(f"{name!r} is no name for a Python package: use one such as my_agents"))
    if name in _TAKEN:
        raise click.UsageError(f"{name!r} is the name of another Python package: use one such as my_agents")
