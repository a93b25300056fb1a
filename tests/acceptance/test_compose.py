"""`docker-compose.yml`: its services with their own commands, as processes instead of containers."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg2
import pytest
import yaml
from support import Broker, until

from waooaw_celery import AgentApp
from waooaw_celery.errors import UnknownAgent
from waooaw_celery.ledger.database.engine import database_url
from waooaw_celery.ledger.database.version import check_version
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.message import NO_RECIPIENT
from waooaw_celery.store.connection import connect, store_url
from waooaw_celery.testing.embedded import free_port, running, valkey

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
#: The services that run this project's image; a new service in the file is tested too.
OURS = [name for name in SERVICES if name not in ("redis", "postgres")]
#: Those of them that keep running; `migrate` ends.
LASTING = [name for name in OURS if name != "migrate"]
#: The modules of the programs in the image.
PROGRAMS = {"celery": "celery", "waooaw": "waooaw_celery"}
#: The environment variables that the file needs.
SECRETS = {"POSTGRES_PASSWORD": secrets.token_hex(8), "FLOWER_BASIC_AUTH": f"operator:{secrets.token_hex(8)}"}

#: Seconds that a service may take to be ready while all are starting.
START = 60.0
#: Seconds that a service may take to end.
STOP = 20.0


def words(service: str) -> list[str]:
    """Return the words of a service's command, split as Compose does."""
    return shlex.split(SERVICES[service]["command"])


def module(service: str) -> str:
    """Return the module in a service's command; empty if it names none, like the exporter's."""
    command = words(service)
    return command[command.index("-A") + 1] if "-A" in command else ""


def kind(service: str) -> str:
    """Return ``worker``, ``beat``, ``flower`` or ``exporter``: what a service runs."""
    command = words(service)
    return command[command.index("-A") + 2] if "-A" in command else command[1]


#: The entry points of the agents.
AGENT_MODULES = sorted(f"workers.{path.stem}" for path in (ROOT / "workers").glob("[!_]*.py"))
AGENTS = [name for name in LASTING if module(name) in AGENT_MODULES]


def python(words: list[str]) -> list[str]:
    """Return a command that runs the image's program with this Python."""
    return [sys.executable, "-m", PROGRAMS[words[0]], *words[1:]]


def localized(word: str, port: int, folder: Path) -> str:
    """Return a word of a command with its port, or the folder of a temporary file, replaced."""
    return re.sub(r"^/tmp(?=/)", str(folder), re.sub(r"(?<=^--port=)\d+$", str(port), word))


def interpolated(service: str) -> dict[str, str]:
    """Return a service's environment variables with the secrets filled in, as Compose does."""
    return {
        name: re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", lambda match: SECRETS[match[1]], value)
        for name, value in SERVICES[service]["environment"].items()
    }


def environment(service: str, addresses: dict[str, str]) -> dict[str, str]:
    """Return a service's environment with the addresses of the test's servers."""
    values = interpolated(service)
    assert addresses.keys() <= values.keys()
    ours = ("CELERY_", "WAOOAW_", "FLOWER_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    own = {"WAOOAW_SWEEP_SECONDS": "1", "WAOOAW_HEALTH_PORT": str(health_port(service))}
    return inherited | values | addresses | own


@cache
def health_port(service: str) -> int:
    """Return a free port for the health of a service: in their containers, all have the same."""
    return free_port()


@dataclass(frozen=True)
class Service:
    """A service of the file that runs as a process."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    port: int

    def wait(self, what: str, check: Callable[[], bool]) -> None:
        """Wait until a check succeeds; fail with the service's log if it ends or takes too long."""
        deadline = time.monotonic() + START
        while not check():
            code = self.process.poll()
            assert code is None, f"{self.name} ended with {code} before {what}:\n{self.printed()}"
            assert time.monotonic() < deadline, f"{self.name}: no {what} in {START:.0f} s:\n{self.printed()}"
            time.sleep(0.05)

    def printed(self) -> str:
        """Return its output so far."""
        return self.log.read_text(errors="replace")


@dataclass(frozen=True)
class Fleet:
    """All running services, and an application that uses the same servers."""

    addresses: dict[str, str]
    app: AgentApp
    services: dict[str, Service]

    def declared_workers(self, agent: str) -> tuple[str, ...]:
        """Return an agent's workers in the registry; none if the agent is not registered."""
        try:
            return self.app.registry.get(agent).workers
        except UnknownAgent:
            return ()

    def wait_for_agent(self, agent: str) -> None:
        """Wait until the agent's worker is in the registry, with the name of its service."""
        node = f"{agent}@{socket.gethostname()}"
        self.services[agent].wait("its entry in the registry", lambda: node in self.declared_workers(agent))

    def exec(self, service: str, *command: str) -> str:
        """Run a command with a service's environment, as `docker compose exec` and `run` do."""
        env = environment(service, self.addresses)
        done = subprocess.run(
            python(list(command)), env=env, cwd=ROOT, capture_output=True, text=True, timeout=START, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def succeeds(self, service: str, *command: str) -> bool:
        """Return whether a command succeeds with a service's environment, such as its health check."""
        env = environment(service, self.addresses)
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, timeout=START, check=False)
        return done.returncode == 0


@pytest.fixture(scope="module")
def empty_database(postgres_url: str) -> Iterator[str]:
    """URL of a PostgreSQL database without tables, as in a new volume."""
    name = f"waooaw_{uuid4().hex}"
    with closing(psycopg2.connect(postgres_url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
            yield database_url(postgres_url).set(database=name).render_as_string(hide_password=False)
            cursor.execute(f"DROP DATABASE {name}")


@pytest.fixture(scope="module")
def fleet(empty_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """All our services with their own command and environment: `migrate`, then all others at once."""
    folder = tmp_path_factory.mktemp("compose")
    with ExitStack() as stack:
        broker_url = stack.enter_context(valkey())
        app = stack.enter_context(closing(Broker(broker_url, broker_url, folder, empty_database).app()))
        stack.callback(app.database.close)
        services: dict[str, Service] = {}
        fleet = Fleet({"CELERY_BROKER_URL": broker_url, "WAOOAW_DATABASE_URL": empty_database}, app, services)
        fleet.exec("migrate", *words("migrate"))
        for name in LASTING:
            port, log = free_port(), folder / f"{name}.log"
            command = python([localized(word, port, folder) for word in words(name)])
            process = running(command, log=log, env=environment(name, fleet.addresses), cwd=ROOT)
            services[name] = Service(name, stack.enter_context(process), log, port)
        yield fleet


def status(port: int, path: str, *, method: str = "GET", credentials: str | None = None) -> int | None:
    """Return the HTTP status of an answer, or None if nothing listens."""
    token = base64.b64encode((credentials or "").encode()).decode()
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        try:
            connection.request(method, path, headers={"Authorization": f"Basic {token}"} if credentials else {})
            return connection.getresponse().status
        except ConnectionRefusedError:
            return None


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    """Check a file against the schema of the Compose specification, which is part of the checker."""
    nowhere = "http://127.0.0.1:9"  # the discard port: every access to the network fails
    return subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)],
        env={**os.environ, "http_proxy": nowhere, "https_proxy": nowhere},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_file_is_valid_compose() -> None:
    """The file conforms to the Compose specification."""
    checked = validate(COMPOSE)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_misspelt_key_is_refused(tmp_path: Path) -> None:
    """A copy of the file with a misspelt key is refused, and the error names the key."""
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(COMPOSE.read_text().replace("healthcheck:", "healthchek:", 1))
    checked = validate(broken)
    assert checked.returncode != 0
    assert "healthchek" in checked.stdout + checked.stderr


def test_every_agent_has_a_service() -> None:
    """Each module in `workers/` has a service."""
    assert AGENT_MODULES
    assert set(AGENT_MODULES) <= {module(name) for name in LASTING}


@pytest.mark.parametrize("name", [name for name in LASTING if module(name)])
def test_command_names_a_module_of_the_image(name: str) -> None:
    """The module in a command exists, and the Dockerfile copies it into the image."""
    path = Path(*module(name).split(".")).with_suffix(".py")
    assert (ROOT / path).is_file()
    assert re.search(rf"^COPY .*\b{re.escape(path.parts[0])}/? ", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def test_image_gets_what_it_copies_and_nothing_else() -> None:
    """What the Dockerfile copies exists and passes `.dockerignore`, and nothing else does."""
    lines = [line.split() for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    copied = {source for line in lines if "--from=build" not in line for source in line[1:-1]}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


def test_only_this_computer_reaches_a_port() -> None:
    """Each published port is on the loopback interface, and the broker publishes none."""
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert "ports" not in SERVICES["redis"]


@pytest.mark.parametrize(
    ("service", "variable"), [("postgres", "POSTGRES_PASSWORD"), ("flower", "FLOWER_BASIC_AUTH")]
)
def test_secret_is_required_and_not_in_the_file(service: str, variable: str) -> None:
    """Compose refuses to start without the secret, which has no default."""
    assert SERVICES[service]["environment"][variable].startswith(f"${{{variable}:?")


@pytest.mark.parametrize("name", OURS)
def test_addresses_are_those_of_the_servers(name: str) -> None:
    """Each of our services gets the host names `redis` and `postgres`, and the user that `postgres` creates."""
    values, server = interpolated(name), interpolated("postgres")
    assert urlsplit(values["CELERY_BROKER_URL"]).hostname == "redis"
    ledger = database_url(values["WAOOAW_DATABASE_URL"])
    assert (ledger.get_backend_name(), ledger.host, ledger.port) == ("postgresql", "postgres", None)
    assert (ledger.username, ledger.password, ledger.database) == tuple(
        server[f"POSTGRES_{what}"] for what in ("USER", "PASSWORD", "DB")
    )


@pytest.mark.parametrize("name", LASTING)
def test_nothing_starts_before_the_ledger_has_its_tables(name: str) -> None:
    """A service waits for `redis` and the end of `migrate`, which waits for `postgres` and is not restarted."""
    healthy = {"condition": "service_healthy"}
    completed = {"condition": "service_completed_successfully"}
    assert SERVICES[name]["depends_on"] == {"redis": healthy, "migrate": completed}
    assert SERVICES["migrate"]["depends_on"] == {"postgres": healthy}
    assert SERVICES["migrate"]["restart"] == "no"


def test_one_service_builds_the_image_for_all() -> None:
    """`migrate`, on which all others depend, builds the image; the others use it and never pull."""
    assert {SERVICES[name]["image"] for name in OURS} == {SERVICES["migrate"]["image"]}
    assert [name for name in OURS if "build" in SERVICES[name]] == ["migrate"]
    assert SERVICES["migrate"]["pull_policy"] == "build"
    assert {SERVICES[name]["pull_policy"] for name in LASTING} == {"never"}


def test_redis_takes_its_flags() -> None:
    """A real server accepts the flags of the `redis` service: messages go to disk and are never evicted."""
    program, *flags = words("redis")
    assert program == "redis-server"
    with valkey(options=flags) as url, closing(connect(store_url(None, url))) as client:
        accepted = client.config_get("maxmemory-policy", "appendonly")
    asked = {flag.removeprefix("--"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    assert accepted == asked == {"maxmemory-policy": "noeviction", "appendonly": "yes"}


@pytest.mark.slow
def test_the_ledger_has_the_messages_of_the_services(fleet: Fleet, tmp_path: Path) -> None:
    """A document that an operator sends is measured and stored, and the ledger has every message."""
    (tmp_path / "harbour.txt").write_text("Ships lie in the harbour.")
    for agent in AGENTS:
        fleet.wait_for_agent(agent)
    payload = json.dumps({"paths": [str(tmp_path)]})
    sent = fleet.exec("orchestrator", "waooaw", "send", "orchestrator", payload, "--json")
    message_id = json.loads(sent)["message_id"]
    trail = MessageAuditTrail(fleet.app.ledger)

    def seen() -> set[tuple[str, str, str]]:
        receipts = [record.receipt for record in trail.conversation(message_id)]
        # Either of the two analysts may get the only document.
        names = {name: "an analyst" for name in AGENTS if name.startswith("analyst-")}
        return {
            (
                names.get(each.from_agent, each.from_agent),
                names.get(each.to_agent, each.to_agent),
                each.status.value,
            )
            for each in receipts
        }

    expected = {
        ("operator", "orchestrator", "handled"),
        ("orchestrator", "an analyst", "handled"),
        ("an analyst", "archivist", "handled"),
        ("an analyst", "orchestrator", "handled"),
        ("an analyst", NO_RECIPIENT, "published"),
        ("an analyst", "dashboard", "handled"),
    }
    until(lambda: seen() == expected, "the end of the conversation")
    [stored] = json.loads(fleet.exec("archivist", "waooaw", "log", "--to", "archivist", "--json"))
    assert stored["payload"]["path"] == "harbour.txt"


@pytest.mark.slow
def test_migrate_may_run_again(fleet: Fleet) -> None:
    """`migrate` creates the schema, and can run again while the services run, as `up` and `run` do."""
    check_version(fleet.app.database)
    fleet.exec("migrate", *words("migrate"))
    check_version(fleet.app.database)


@pytest.mark.parametrize("name", LASTING)
@pytest.mark.slow
def test_service_works_and_ends(fleet: Fleet, name: str) -> None:
    """The service's own command starts it and it works; SIGTERM, which `docker stop` sends, ends it."""
    service = fleet.services[name]
    if (check := SERVICES[name].get("healthcheck")) is not None:
        command = python(check["test"][1:])
        service.wait("its health", lambda: fleet.succeeds(name, *command))
    checks = {"worker": check_worker, "beat": check_beat, "flower": check_flower, "exporter": check_exporter}
    checks[kind(name)](fleet, service)
    service.process.terminate()
    assert service.process.wait(STOP) == 0, service.printed()


def check_worker(fleet: Fleet, service: Service) -> None:
    """A worker logs that it is ready, with its service's name."""
    node = f"{service.name}@{socket.gethostname()}"
    service.wait("its line `ready.`", lambda: f"{node} ready." in service.printed())
    if service.name in AGENTS:
        fleet.wait_for_agent(service.name)
    else:
        assert "waooaw.system" in service.printed()  # the queue that beat sends to


def check_beat(_: Fleet, service: Service) -> None:
    """Beat starts, and sends a task that is due."""
    service.wait("its start", lambda: "beat: Starting..." in service.printed())
    service.wait("a due task", lambda: "Scheduler: Sending due task" in service.printed())


def check_flower(_: Fleet, service: Service) -> None:
    """Flower shows its pages to its user only, and executes no operation."""
    user = SECRETS["FLOWER_BASIC_AUTH"]
    # These two are open, as docker-compose.yml says.
    service.wait("an answer", lambda: status(service.port, "/healthcheck") == 200)
    assert status(service.port, "/metrics") == 200
    assert status(service.port, "/", credentials=user) == 200
    assert status(service.port, "/") == 401
    assert status(service.port, "/", credentials="operator:wrong") == 401
    assert status(service.port, "/api/workers") == 401
    assert status(service.port, "/api/task/send-task/waooaw.sweep", method="POST", credentials=user) == 403


def check_exporter(fleet: Fleet, service: Service) -> None:
    """The exporter reads all servers, and has the agents of the other services."""
    service.wait("its readings", lambda: status(service.port, "/health/ready") == 200)
    wanted = [f'waooaw_agent_workers{{agent="{agent}"}}' for agent in AGENTS]
    wanted += ['waooaw_exporter_source_up{source="broker"} 1', 'waooaw_exporter_source_up{source="ledger"} 1']

    def metrics() -> str:
        with closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)) as connection:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()

    service.wait("the metrics of all agents", lambda: all(line in metrics() for line in wanted))
