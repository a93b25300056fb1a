"""The documents: their code imports what exists, links resolve, commands exist, every page can be found."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import click
import pytest
import yaml
from celery.bin.celery import celery

import waooaw_celery
from waooaw_celery import agents as all_names
from waooaw_celery import aio, edges, errors, testing
from waooaw_celery.cli import waooaw
from waooaw_celery.messages.message import Message
from waooaw_celery.settings import WaooawSettings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("*.md")), *sorted((ROOT / ".github").rglob("*.md"))]
PAGES += sorted((ROOT / "examples").glob("*/README.md"))
#: The modules from which users import.
PUBLIC = {
    "waooaw_celery.testing",
    "waooaw_celery",
    "waooaw_celery.agents",
    "waooaw_celery.agents.integrations.django",
    "waooaw_celery.agents.integrations.fastapi",
    "waooaw_celery.aio",
    "waooaw_celery.edges",
    "waooaw_celery.testing.embedded",
}
#: Languages of blocks that no test reads: output, pictures of characters, other programs' files.
UNREAD = {"", "text", "mermaid", "nginx", "{toctree}", "{public-api}", "{command-help}", "{ledger-tables}"}

pages = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each fenced block."""
    yield from re.findall(r"^ *```([^\s`]*)[^\n`]*\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)


def prose(path: Path) -> str:
    """Return a page without its blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


@pages
def test_the_code_in_the_documents_can_be_read_and_imports_what_is_there(path: Path) -> None:
    """Each Python block compiles, and each name that it imports exists in a public module."""
    for language, block in blocks(path.read_text()):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("waooaw_celery"):
                assert node.module in PUBLIC, f"{node.module} is not public"
                for alias in node.names:
                    assert hasattr(import_module(str(node.module)), alias.name), alias.name


@pages
def test_the_other_blocks_can_be_read(path: Path) -> None:
    """JSON, YAML and TOML parse; each line of a shell calls a program that exists, with options that it has."""
    for language, block in blocks(path.read_text()):
        match language:
            case "python":
                pass  # the test above
            case "json":
                json.loads(block)
            case "yaml":
                yaml.safe_load(block)
            case "toml":
                tomllib.loads(block)
            case "sh" | "console":
                for command in shell_commands(block, prompt=language == "console"):
                    check_command(command)
            case _:
                assert language in UNREAD, f"no test reads a block of {language!r}"


def shell_commands(block: str, *, prompt: bool) -> Iterator[str]:
    """Yield each command of a block, joined where a quote or a backslash goes on in the next line."""
    lines = block.splitlines()
    if prompt:  # the lines without a prompt are output
        before = ["", *lines]
        shown = [
            line for line, last in zip(lines, before, strict=False) if line.startswith("$ ") or last.endswith("\\")
        ]
        lines = [line.removeprefix("$ ") for line in shown]
    waiting = ""
    for line in lines:
        waiting = f"{waiting}\n{line}" if waiting else line
        if waiting.endswith("\\"):
            waiting = waiting.removesuffix("\\")
            continue
        try:
            shlex.split(waiting, comments=True)
        except ValueError:  # no closing quotation yet
            continue
        yield waiting
        waiting = ""
    assert not waiting, f"the quotes of {waiting!r} do not end"


#: Programs that pages call beside ours. What they do is not ours to check.
OTHERS = {
    *(
        "cd",
        "cat",
        "source",
        ".",
        "pip",
        "python",
        "python3",
        "pytest",
        "uvicorn",
        "docker",
        "git",
        "grep",
        "jq",
        "open",
        "psql",
    ),
    *(
        "prometheus",
        "promtool",
        "curl",
        "systemctl",
        "kubectl",
        "ruff",
        "mypy",
        "apt-get",
        "redis-cli",
        "kill",
        "mkdir",
    ),
    *("echo", "test", "eval", "unzip", "sudo", "chmod"),
}


def check_command(text: str) -> None:
    """Check one line of a shell: known programs; `waooaw`, `celery` and `dev.py` with options that they have."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for token in lexer:
        if set(token) <= set("<>"):
            parts[-1].append("FILE>")
        elif set(token) <= set("&|;()"):
            parts.append([])
        elif parts[-1][-1:] == ["FILE>"]:
            parts[-1].pop()
        else:
            parts[-1].append(token)
    for words in parts:
        while words and re.fullmatch(r"(export|sudo|[A-Z_]+=.*)", words[0]):
            words.pop(0)
        if not words or "…" in words:
            continue
        program = words[0]
        if program == "waooaw":
            check_options(waooaw, words[1:], text)
        elif program == "celery":
            check_options(celery, words[1:], text)
        elif words[:2] == ["python3", "dev.py"]:
            assert words[2] in development_commands(), text
        else:
            assert program in OTHERS or program.startswith(("./", "/")), f"no test knows {program!r} of {text!r}"


def check_options(group: click.Command, words: list[str], text: str) -> None:
    """Check that a command line names commands and options that exist. Values are not checked."""
    command, rest = group, list(words)
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
    while rest:
        word = rest.pop(0)
        if word.startswith("-") and not re.fullmatch(r"-\d+|-", word):
            name = word.partition("=")[0]
            assert name in known or (len(name) > 2 and name[:2] in known), f"{text!r}: no option {name}"
        elif isinstance(command, click.Group):
            found = command.get_command(click.Context(command), word)
            if found is not None:
                command = found
                known |= {option for each in found.params for option in (*each.opts, *each.secondary_opts)}
            else:  # the value of an option before the command
                assert rest, f"{text!r}: no command {word}"


def development_commands() -> set[str]:
    """Return the commands of dev.py."""
    return set(re.findall(r'^    "(\w+)": \(', (ROOT / "dev.py").read_text(), re.MULTILINE))


@pages
def test_the_commands_in_the_text_exist(path: Path) -> None:
    """What stands in backquotes and begins with `waooaw` is a command, with options that it has."""
    if path.name in ("CHANGELOG.md", "decisions.md"):  # they also name what was
        return
    for text in re.findall(r"`(waooaw [^`\n]+)`", prose(path)):
        line = re.sub(r"\s\|.*|\.\.\.|…|\s>.*", "", text)
        if line != "waooaw" and line.count("'") % 2 == 0:
            check_options(waooaw, [word for word in shlex.split(line)[1:] if word != "COMMAND"], text)


@pages
def test_the_links_between_the_documents_lead_somewhere(path: Path) -> None:
    """Each relative link names a file, and each anchor a heading of it."""
    text = prose(path)
    targets = re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)
    for target in [*targets, *re.findall(r"(?:src|srcset)=\"([^\"]+)\"", text)]:
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_a_file_that_is_shown_twice_is_the_same() -> None:
    """A file that several documents show is the same in all of them."""
    shown: dict[str, str] = {}
    for path in PAGES:
        for text, name in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", path.read_text(), re.DOTALL):
            assert shown.setdefault(name, text) == text, f"{name} in {path.name}"


def test_every_page_is_in_the_table_of_contents() -> None:
    """docs/index.md, and the tables of contents that it links to, have every page once."""
    listed: list[Path] = []
    for path in DOCS.rglob("*.md"):
        _, found, rest = path.read_text().partition("<!-- contents -->")
        links = re.findall(r"^- \[[^\]]+\]\((?!https?:)([\w./-]+\.md)\)", rest, re.MULTILINE) if found else []
        listed += [(path.parent / link).resolve() for link in links]
    assert sorted(listed) == sorted({path.resolve() for path in DOCS.rglob("*.md")} - {DOCS / "index.md"})


def test_pages_are_short() -> None:
    """No page has more than 400 lines, but for the record of decisions, so that each has one subject."""
    long = {path.name for path in DOCS.rglob("*.md") if len(path.read_text().splitlines()) > 400}
    assert long <= {"decisions.md"}


def test_the_page_of_errors_is_the_tree_of_errors() -> None:
    """Each error has a row with the class above it, the meaning of its docstring's tree, and what to do."""
    table = (DOCS / "reference" / "errors.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (?:`(\w+)`)? *\| (.+?) \| (.+) \|$", table, re.MULTILINE)
    tree: list[tuple[str, str, str]] = []
    path: list[str] = []
    for indent, name, text in re.findall(r"^( *)\* (\w+)(?: +(.+))?$", errors.__doc__ or "", re.MULTILINE):
        path[len(indent) // 4 :] = [name]
        tree.append((name, path[-2] if len(path) > 2 else "", text.strip()))
    assert [row[:3] for row in rows] == tree[1:]
    assert all(row[3].strip() for row in rows)


def test_every_error_is_public() -> None:
    """`waooaw_celery.agents` offers each class of errors.py, and `waooaw_celery.testing` that of tests."""
    tree = re.findall(r"^ *\* (\w+)", errors.__doc__ or "", re.MULTILINE)
    assert set(tree) <= {*all_names.__all__, *testing.__all__}


def test_the_page_of_settings_has_each_setting() -> None:
    """docs/reference/settings.md has a row for each setting with its variable, and no other."""
    table = (DOCS / "reference" / "settings.md").read_text().partition("## All settings")[2]
    rows = re.findall(r"^\| (`waooaw_.+?) \|", table, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(waooaw_\w+)`", row)]
    assert sorted(named) == sorted(f"waooaw_{each.name}" for each in fields(WaooawSettings))


def test_the_pages_of_the_api_have_each_public_name() -> None:
    """Each name of the public modules is on one page of docs/reference/api."""
    shown: dict[str, list[str]] = {}
    for path in (DOCS / "reference" / "api").glob("*.md"):
        for module, names in re.findall(r"```\{public-api\} (\S+)\n(.*?)```", path.read_text(), re.DOTALL):
            shown.setdefault(module, []).extend(names.split())
    assert sorted(shown["waooaw_celery.agents"]) == sorted(all_names.__all__)
    assert sorted(shown["waooaw_celery.aio"]) == sorted(aio.__all__)
    assert sorted(shown["waooaw_celery.testing"]) == sorted(testing.__all__)
    assert sorted(shown["waooaw_celery.edges"]) == sorted(edges.__all__)
    assert set(waooaw_celery.__all__) <= set(all_names.__all__)


def test_the_page_of_the_wire_has_each_key_of_the_envelope() -> None:
    """docs/reference/wire.md names what Message.to_envelope writes."""
    page = (DOCS / "reference" / "wire.md").read_text().partition("## The envelope")[2]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.+?) \|", page, re.MULTILINE))))
    message = Message(
        from_agent="a", to_agent="b", identity="did:x", serializer="json", compression="none", ledger="x", resent=1
    )
    assert set(message.to_envelope()) <= named


def test_the_page_of_extras_has_each_extra() -> None:
    """docs/reference/extras.md and the README have a row for each extra; `all` has all of them."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = dict(config["options.extras_require"])
    page = (DOCS / "reference" / "extras.md").read_text()
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == sorted(extras)
    readme = (ROOT / "README.md").read_text().partition("| extra | adds |")[2].partition("\n\n")[0]
    named = re.findall(r"`([\w-]+)`", "".join(re.findall(r"^\| (.+?) \|", readme, re.MULTILINE)))
    assert sorted(named) == sorted(extras)
    [every] = re.findall(r"\[(.+)\]", extras["all"])
    assert sorted(every.split(",")) == sorted(set(extras) - {"all"})


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    """What is not released, then versions from the newest, each with its day; known sections in order."""
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    released = headings[1:] if headings[0] == "[Unreleased]" else headings
    shapes = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d", each) for each in released]
    assert all(shapes), headings
    versions = [tuple(int(part) for part in shape[1].split(".")) for shape in shapes if shape]
    assert versions == sorted(versions, reverse=True)
    order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for section in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        names = re.findall(r"^### (.+)$", section, re.MULTILINE)
        assert names == [name for name in order if name in names], names
        assert all(line.startswith(("-", "  ", "#")) or not line for line in section.splitlines()), section[:80]


def test_the_version_is_in_one_place() -> None:
    """setup.cfg has it; no file of the package repeats it."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    version = config["metadata"]["version"]
    assert not [path for path in (ROOT / "waooaw_celery").rglob("*.py") if f'"{version}"' in path.read_text()]


def test_a_wrong_command_is_found() -> None:
    """The checks of these tests can fail."""
    for wrong in (
        "waooaw sent x",
        "waooaw send x --prioriti high",
        "python3 dev.py tset",
        "waoow send",
        "celery workr",
    ):
        with pytest.raises(AssertionError):
            check_command(wrong)
    check_command("WAOOAW_X=1 waooaw -A greeter send greeter '{\"task\": 8}' --priority high | jq .")
    assert sys.version_info >= (3, 11)


#: Files whose import sends messages: tests/acceptance/test_readme.py runs them.
PROGRAMS = {"caller.py", "listener.py", "publisher.py"}


def test_the_agents_that_the_documents_show_can_be_loaded(tmp_path: Path) -> None:
    """Each named file is imported: decorators, their options and signatures are right. No server is asked."""
    shown: dict[str, str] = {}
    for path in PAGES:
        for text, name in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", path.read_text(), re.DOTALL):
            if name not in PROGRAMS and not name.startswith(("test_", "conftest")):
                shown[name] = text
    assert {"greeter.py", "host.py", "translator.py", "checkout.py", "writer.py"} <= shown.keys()
    for name, text in shown.items():
        (tmp_path / name).write_text(text)
    modules = ", ".join(sorted(name.removesuffix(".py") for name in shown))
    done = subprocess.run(
        [sys.executable, "-c", f"import {modules}"],
        cwd=tmp_path,
        env=os.environ | {"CELERY_BROKER_URL": "redis://localhost:1/0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
