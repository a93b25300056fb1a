"""A process imports only what it needs. The tests look at modules, because times depend on the computer."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Modules that a process loads only when it uses them.
HEAVY = ("alembic", "jsonschema", "psycopg2", "pydantic", "rich", "sqlalchemy")

SEND = """
from waooaw_celery import Message, MessageBus, create_app
app = create_app(broker_url="redis://nowhere.invalid", waooaw_sender="tests")
bus = MessageBus(app)
Message(from_agent="tests", to_agent="worker-1")
app.components.publisher, app.components.receipts, app.components.registry, app.packer
"""
HANDLE = """
from waooaw_celery import Agent, create_app
app = create_app(broker_url="redis://nowhere.invalid")
agent = Agent("worker-1", app)
"""
HELP = """
from waooaw_celery.cli import waooaw
waooaw(["--help"], standalone_mode=False)
"""


def loaded(program: str) -> set[str]:
    """Run a program in a process of its own, and return the top-level modules that it has loaded."""
    code = f"{program}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split("\n")[-2].split())


def test_importing_the_package_loads_no_celery() -> None:
    """The public names are loaded when they are first used."""
    assert not loaded("import waooaw_celery") & {"celery", "kombu", "redis", *HEAVY}


def test_the_list_of_commands_loads_no_celery() -> None:
    """waooaw --help loads click and nothing of the commands."""
    assert not loaded(HELP) & {"celery", "redis", *HEAVY}


@pytest.mark.parametrize("program", [SEND, HANDLE], ids=["send", "handle"])
def test_a_process_without_a_ledger_loads_no_database_library(program: str) -> None:
    """Neither a process that sends nor one with an agent loads SQLAlchemy or the libraries of single features."""
    assert not loaded(program) & set(HEAVY)
