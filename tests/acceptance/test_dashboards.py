"""The dashboards: they name metrics that exist, and a real Prometheus answers each query of the fleet's ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fleet_metrics import WORKER_METRICS, Prometheus, exporting, program, prometheus
from support import Broker, lone_database, note, until
from test_alert_rules import known_metrics, named_metrics

from waooaw_celery import AgentApp, Message, MessageBus, Priority
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.workflow_models import WorkflowRow
from waooaw_celery.messages.receipt import MessageEvent
from waooaw_celery.monitoring.http_server import MonitoringServer
from waooaw_celery.testing.embedded import valkey

FOLDER = Path(__file__).parents[2] / "waooaw_celery" / "monitoring" / "dashboards"
DASHBOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))
}
#: Each query with the dashboard and the title of its panel.
QUERIES = [
    pytest.param(name, panel["title"], target["expr"], id=f"{name}-{panel['title']}-{target['refId']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    for target in panel.get("targets", [])
]
#: The agent of the test's traffic.
AGENT = "writer"


def filled_in(expression: str) -> str:
    """Return an expression with the values of Grafana's variables."""
    values = {"$exporter": ".+", "$agent": AGENT, "$__rate_interval": "1m"}
    return re.sub(r"\$(__rate_interval|exporter|agent)", lambda match: values[match[0]], expression)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_complete(name: str) -> None:
    """Ids are unique, panels do not overlap, each says what it shows, and the data source is a variable."""
    dashboard = DASHBOARDS[name]
    assert dashboard["id"] is None
    assert dashboard["schemaVersion"] >= 39
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    assert {"datasource", "exporter"} <= variables
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not own & cells, panel["title"]
        cells |= own
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    for expression in (target["expr"] for panel in panels for target in panel.get("targets", [])):
        assert set(re.findall(r"\$(\w+)", expression)) <= variables | {"__rate_interval"}


def test_there_are_two_dashboards() -> None:
    """Of the fleet, and of one agent, which is a variable."""
    assert set(DASHBOARDS) == {"agent", "fleet"}
    assert "agent" in {each["name"] for each in DASHBOARDS["agent"]["templating"]["list"]}


@pytest.mark.parametrize(("name", "title", "expression"), QUERIES)
def test_a_query_names_metrics_that_exist(name: str, title: str, expression: str) -> None:
    """Those that the exporter or a worker declares."""
    named = named_metrics(expression)
    assert named
    assert named <= known_metrics()


def make_traffic(app: AgentApp) -> None:
    """Leave a bit of everything that the exporter shows."""
    now = app.reference_clock.now()
    report = {"clock": {"ahead": 0.25, "error": 0.0, "reference": "Redis"}}
    app.registry.declare(AGENT, ["command"], "writer@host", 600.0, report=report)
    for priority in Priority:
        MessageBus(app).send(Message(from_agent="planner", to_agent=AGENT, priority=priority))
    for event in (MessageEvent.HANDLED, MessageEvent.EXPIRED, MessageEvent.RECOVERED, MessageEvent.DELIVERED):
        message = Message(from_agent="planner", to_agent=AGENT)
        app.ledger.begin_recording([(message, "command")])()
        note(app.ledger, message, event)
    app.ledger.refused(AGENT, "10/second", 3)
    app.ledger.flush()
    app.dead_letters.add(f"agent.{AGENT}", "ValueError: x", b"{}")
    app.breakers.open_by_hand(AGENT, by="ada")
    row = {"workflow_id": str(uuid4()), "name": f"{AGENT}.order", "agent": AGENT, "status": "stuck", "priority": 1}
    row |= {"run": 1, "input_digest": "", "conversation_id": "c", "created_at": now - timedelta(minutes=1)}
    row |= {"retention": "90 days", "fence": 0, "takeovers": 0, "last_change": 0, "inputs": 0}
    with app.database.begin("write a workflow") as connection:
        connection.execute(WorkflowRow.__table__.insert(), [row])  # type: ignore[attr-defined]


@contextmanager
def fleet(postgres_url: str, folder: Path) -> Iterator[tuple[AgentApp, int]]:
    """Run an exporter of an application of its own, and yield the application and the exporter's port."""
    with ExitStack() as stack:
        url = stack.enter_context(valkey())
        broker = Broker(url, url, folder, stack.enter_context(lone_database(postgres_url)))
        app = stack.enter_context(closing(broker.app(waooaw_agents=[AGENT])))
        schema.upgrade(app.database)
        make_traffic(app)
        exporter = stack.enter_context(exporting(app, interval=0.5))
        server = MonitoringServer(exporter.routes(), 0, "127.0.0.1")
        server.start()
        stack.callback(server.stop)
        yield app, server.port


@pytest.fixture(scope="module")
def scraping(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the exporter of an application with traffic."""
    program("prometheus")  # skips before anything else is started
    with (
        fleet(postgres_url, tmp_path_factory.mktemp("dashboards")) as (_, port),
        prometheus(tmp_path_factory.mktemp("prometheus"), {"waooaw": port}) as server,
    ):
        until(lambda: len(server.query("waooaw_exporter_source_up == 1")) == 6, "a scrape of all sources")
        yield server


@pytest.mark.parametrize(("name", "title", "expression"), QUERIES)
def test_a_query_returns_data(scraping: Prometheus, name: str, title: str, expression: str) -> None:
    """Prometheus accepts each query; one of the fleet's metrics has a result."""
    found = scraping.query(filled_in(expression))
    if not named_metrics(expression) & set(WORKER_METRICS):
        assert found, f"{title}: no data"


def test_the_variables_have_values(scraping: Prometheus) -> None:
    """Grafana offers the exporters and the agents."""
    for dashboard in DASHBOARDS.values():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
                assert found is not None
                assert scraping.get(f"/api/v1/label/{found[2]}/values", **{"match[]": found[1]})
