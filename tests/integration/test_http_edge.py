"""The HTTP edge, served by uvicorn: calls, tasks, streams, messages, receipts, and what it describes."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx2
import jsonschema
import pytest
from edge_server import served
from edge_world import EdgeWorld, edge_world
from starlette.applications import Starlette
from starlette.routing import Mount
from support import until

from waooaw_celery.edges import EdgeOptions, Protocol, create_edge
from waooaw_celery.edges.access.authentication import ApiKeys
from waooaw_celery.edges.access.principals_file import new_key, parse_principals
from waooaw_celery.testing.embedded import valkey

KEY, GUEST_KEY = new_key(), new_key()


@dataclass(frozen=True)
class Client:
    """A client of the edge, and what is behind it."""

    world: EdgeWorld
    url: str
    http: httpx2.Client

    def call(self, method: str, arguments: Any = None, query: str = "", **headers: str) -> httpx2.Response:
        """Call a method of the agent."""
        path = f"/v1/agents/{self.world.agent}/methods/{method}{query}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(path, json={} if arguments is None else arguments, headers=named)

    def ended(self, task_id: str) -> dict[str, Any]:
        """Wait for the end of a task, and return it."""
        final = ("completed", "failed", "expired", "cancelled")
        until(lambda: self.http.get(f"/v1/tasks/{task_id}").json()["state"] in final, "the end of a task")
        found: dict[str, Any] = self.http.get(f"/v1/tasks/{task_id}").json()
        return found

    def in_state(self, task_id: str, state: str) -> bool:
        """Whether a task is in a state."""
        return bool(self.http.get(f"/v1/tasks/{task_id}").json().get("state") == state)


def events_of(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Yield the name and the data of each server-sent event."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeWorld]:
    folder = tmp_path_factory.mktemp("http-edge")
    with valkey() as url, edge_world(url, f"sqlite:///{folder / 'ledger.db'}", folder) as made:
        yield made


@pytest.fixture(scope="module")
def client(world: EdgeWorld) -> Iterator[Client]:
    principals = parse_principals(
        {
            "portal": {
                "from_agent": "portal",
                "keys": [KEY[1]],
                "may_call": [f"{world.agent}.*"],
                "may_publish": ["orders.*"],
            },
            "guest": {"from_agent": "guest", "keys": [GUEST_KEY[1]], "may_call": [f"{world.agent}.echo"]},
        }
    )
    edge = create_edge(world.app, EdgeOptions(protocols=[Protocol.HTTP], authentication=ApiKeys(principals)))
    with (
        served(edge.asgi) as server,
        httpx2.Client(base_url=server.url, headers={"X-API-Key": KEY[0]}, timeout=30) as http,
    ):
        yield Client(world, server.url, http)


def test_a_call_is_answered_with_its_task(client: Client) -> None:
    """The ledger has it with the identity of the principal."""
    answer = client.call("forecast", {"city": "Turin"})
    assert answer.status_code == 200
    task = answer.json()
    assert (task["state"], task["result"]) == ("completed", {"city": "Turin", "degrees": 21})
    record = client.world.trail.receipt(task["task_id"])
    assert (record.receipt.from_agent, record.identity) == ("portal", "http:portal")
    assert client.ended(task["task_id"])["result"] == task["result"]


def test_a_call_may_be_answered_with_a_link(client: Client) -> None:
    """At once with respond-async, or after the time that the client waits."""
    for prefer in ("respond-async", "wait=0", "respond-async, wait=1"):
        answer = client.call("slow", {"seconds": 2.0}, Prefer=prefer)
        assert (answer.status_code, answer.json()["state"] in ("submitted", "working")) == (202, True)
        assert answer.headers["Preference-Applied"] == prefer
        assert answer.headers["Location"] == f"/v1/tasks/{answer.json()['task_id']}"
        client.http.delete(answer.headers["Location"])
        client.ended(answer.json()["task_id"])


def test_a_handler_that_fails_is_told(client: Client) -> None:
    """With the type and the text of its error, and without a traceback."""
    answer = client.call("fail", {"text": "no such city"})
    assert answer.status_code == 500
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["detail"] == "ValueError: no such city"
    assert answer.json()["task"]["state"] == "failed"
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("method", "arguments", "query", "status", "detail"),
    [
        ("forecast", {"town": "Rome"}, "", 422, "city"),
        ("forecast", ["Rome"], "", 422, "JSON object"),
        ("nothing", {}, "", 404, "it has"),
        ("echo", {"text": "x"}, "?priority=soon", 400, "priority must be one of"),
        ("echo", {"text": "x"}, "?timeout=-1", 400, "timeout must be"),
        ("echo", {"text": "x"}, "?timeout=nan", 400, "timeout must be"),
        ("echo", {"text": "x"}, "?timeout=301", 400, "timeout must be"),
        ("echo", {"text": "x"}, "?conversation=a%20b", 400, "conversation must be"),
        ("slow", {"seconds": 20}, "?timeout=0.3", 504, ""),
    ],
)
def test_a_bad_call_is_refused(
    client: Client, method: str, arguments: Any, query: str, status: int, detail: str
) -> None:
    """With the status and a sentence that says what is wrong."""
    answer = client.call(method, arguments, query)
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert detail in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"text": NaN}', 400),
        (b'{"text": "x", "text": "y"}', 400),
        (b'{"text": "\xff"}', 400),
        ('{"text": "x"}'.encode("utf-16"), 400),
        (b'{"text": "\\ud800"}', 400),
        (b'{"text": ' + b"[" * 100 + b"]" * 100 + b"}", 400),
        (b"[" * 1_000_000, 400),
        (b'"' + b'\\"' * 1_000_000, 400),
        (b'{"text": ' + b"9" * 5000 + b"}", 400),
        (b'{"text": ' + b"9" * 4000 + b"}", 400),
        (b'{"text": 1e999}', 400),
        (b'{"text": "' + b"x" * (4 * 1024 * 1024) + b'"}', 413),
    ],
    ids=range(13),
)
def test_a_hostile_body_is_refused(client: Client, body: bytes, status: int) -> None:
    """And the edge answers the next request."""
    path = f"/v1/agents/{client.world.agent}/methods/echo"
    answer = client.http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert client.http.get("/health").json() == {"status": "alive"}


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/", 404), ("POST", "/v1/agents", 405)])
def test_a_path_that_is_not_there_is_told(client: Client, method: str, path: str, status: int) -> None:
    """As problem details, with where to begin."""
    answer = client.http.request(method, path)
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert status != 404 or "/v1/agents" in answer.json()["detail"]


def test_unusual_texts_arrive_unchanged(client: Client) -> None:
    """NUL, other planes of Unicode, and what looks like a tagged value of our wire formats."""
    for text in ("\x00", "\U0001f600 \u2028", '{"__type__": "bytes", "__value__": "eA=="}'):
        assert client.call("echo", {"text": text}).json()["result"] == text


def test_only_json_is_taken(client: Client) -> None:
    """A form of a page, which a browser sends without asking, is not."""
    path = f"/v1/agents/{client.world.agent}/methods/echo"
    answer = client.http.post(path, content=b'{"text": "x"}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415


def test_who_shows_no_key_gets_nothing(client: Client) -> None:
    """Not even the list of agents; whether the edge lives, anybody may know."""
    paths = ("/v1/agents", "/openapi.json", "/v1/tasks/health", f"/v1/agents/{client.world.agent}/methods/health")
    with httpx2.Client(base_url=client.url) as stranger:
        assert [stranger.get(path).status_code for path in paths] == [401] * 4
        assert stranger.post("/health").status_code == 401
        assert stranger.get("/health").status_code == 200
        assert stranger.get("/v1/agents", headers={"X-API-Key": "wrong"}).status_code == 401


def test_another_principal_sees_and_does_only_what_it_may(client: Client) -> None:
    """Neither the task nor the receipt of another, no other method, no topic."""
    task = client.call("echo", {"text": "secret"}).json()
    with httpx2.Client(base_url=client.url, headers={"Authorization": f"Bearer {GUEST_KEY[0]}"}) as guest:
        for path in (f"/v1/tasks/{task['task_id']}", f"/v1/receipts/{task['task_id']}"):
            assert guest.get(path).status_code == 404
        assert guest.delete(f"/v1/tasks/{task['task_id']}").status_code == 404
        methods = guest.get(f"/v1/agents/{client.world.agent}").json()["methods"]
        assert [each["name"] for each in methods] == ["echo"]
        agent = f"/v1/agents/{client.world.agent}"
        assert guest.post(f"{agent}/methods/forecast", json={"city": "Rome"}).status_code == 403
        assert guest.post(f"{agent}/messages", json={}).status_code == 403
        event = {"specversion": "1.0", "id": "1", "source": "/x", "type": "orders.created"}
        assert guest.post("/v1/events", json=event).status_code == 415
        structured = {"Content-Type": "application/cloudevents+json"}
        assert guest.post("/v1/events", content=json.dumps(event), headers=structured).status_code == 403


def test_a_repeated_call_leaves_a_stream_its_answer(client: Client) -> None:
    """The same key again, while the parts arrive: as a stream, and as a call that waits. All end well."""
    key, arguments = uuid4().hex, {"topic": "tides", "words": 12, "pause": 0.1}
    path = f"/v1/agents/{client.world.agent}/methods/write"
    headers = {"Idempotency-Key": key, "Accept": "text/event-stream"}

    def stream() -> list[tuple[str, Any]]:
        with client.http.stream("POST", path, json=arguments, headers=headers, timeout=15) as answer:
            return list(events_of(answer.iter_lines()))

    with ThreadPoolExecutor(4) as threads:
        streams = [threads.submit(stream) for _ in range(2)]
        until(lambda: client.world.trail.query(from_agent="portal", limit=1, to_agent=client.world.agent), "one")
        waiting = threads.submit(client.call, "write", arguments, Idempotency_Key=key)
        ended = [each.result() for each in streams]
    assert waiting.result().status_code == 200
    assert {events[-1][0] for events in ended} == {"result"}
    assert max(len([name for name, _ in events if name == "part"]) for events in ended) == 12


def test_parts_that_json_has_no_type_for_are_texts(client: Client) -> None:
    """As in the result of a task."""
    path = f"/v1/agents/{client.world.agent}/methods/moments"
    with client.http.stream("POST", path, json={"count": 2}, headers={"Accept": "text/event-stream"}) as answer:
        events = list(events_of(answer.iter_lines()))
    parts = [data for name, data in events if name == "part"]
    assert parts == [{"at": "2026-11-30T12:00:00+00:00"}, {"at": "2026-11-30T12:00:01+00:00"}]
    assert events[-1][0] == "result"


def test_the_same_key_is_the_same_request(client: Client) -> None:
    """Also at once from several clients; the effect happens once. With other arguments it is refused."""
    city, key = f"city-{uuid4().hex}", uuid4().hex
    with ThreadPoolExecutor(5) as threads:
        answers = list(
            threads.map(lambda _: client.call("forecast", {"city": city}, Idempotency_Key=key), range(5))
        )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["task_id"] for answer in answers}) == 1
    assert client.world.happened().count(f"forecast {city}") == 1
    other = client.call("forecast", {"city": "Rome"}, Idempotency_Key=f'"{key}"')
    assert other.status_code == 422
    assert "belongs to another request" in other.json()["detail"]
    assert client.call("echo", {"text": "x"}, Idempotency_Key=key).status_code == 422
    assert client.call("echo", {"text": "x"}, Idempotency_Key="x" * 256).status_code == 400


def test_a_workflow_waits_for_a_signal(client: Client) -> None:
    """It is a task of the same kind; who follows it sees each change, and the same signal twice is one."""
    key = uuid4().hex
    answer = client.call("review", {"document": "plan"}, Prefer="wait=20", Idempotency_Key=key)
    assert answer.status_code == 202
    task = answer.json()
    assert (task["state"], task["waits_for"]) == ("input required", "approval")
    assert client.call("review", {"document": "another"}, Idempotency_Key=key).status_code == 422
    seen = []
    with client.http.stream("GET", f"/v1/tasks/{task['task_id']}/events", timeout=30) as stream:
        for name, data in events_of(stream.iter_lines()):
            seen.append((name, data["state"]))
            if len(seen) == 1:
                for _ in range(2):
                    signalled = client.http.post(
                        f"/v1/tasks/{task['task_id']}/signals/approval",
                        json="yes",
                        headers={"Idempotency-Key": "1"},
                    )
                    assert signalled.status_code in (202, 409)
    assert seen[0] == ("task", "input required")
    assert seen[-1] == ("result", "completed")
    assert client.ended(task["task_id"])["result"] == {"document": "plan", "decision": "yes"}
    late = client.http.post(f"/v1/tasks/{task['task_id']}/signals/approval", json=1)
    assert late.status_code == 409


def test_a_task_can_be_cancelled(client: Client) -> None:
    """Its handler is stopped; to cancel it again changes nothing."""
    task = client.call("slow", {"seconds": 60}, Prefer="respond-async").json()
    until(lambda: client.in_state(task["task_id"], "working"), "the handler")
    assert client.http.delete(f"/v1/tasks/{task['task_id']}").status_code in (200, 202)
    assert client.ended(task["task_id"])["state"] == "cancelled"
    assert client.http.delete(f"/v1/tasks/{task['task_id']}").status_code == 200
    assert client.http.delete(f"/v1/tasks/{uuid4()}").status_code == 404
    assert client.http.get("/v1/tasks/a%00b").status_code == 400


def test_an_answer_streams_as_events(client: Client) -> None:
    """The parts in order, then the task."""
    path = f"/v1/agents/{client.world.agent}/methods/write"
    headers, body = {"Accept": "text/event-stream"}, {"topic": "tides", "words": 3}
    with client.http.stream("POST", path, json=body, headers=headers) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        events = list(events_of(stream.iter_lines()))
    assert events[:3] == [("part", f"tides-{number} ") for number in range(3)]
    name, task = events[3]
    assert (name, task["state"]) == ("result", "completed")
    assert stream.headers["Location"] == f"/v1/tasks/{task['task_id']}"


def test_other_answers_come_as_events_too(client: Client) -> None:
    """A method without parts, one that fails, and the same key again; a refusal has its own status."""

    def events(method: str, arguments: Any, **headers: str) -> list[tuple[str, Any]]:
        named = {"Accept": "text/event-stream", **headers}
        path = f"/v1/agents/{client.world.agent}/methods/{method}"
        with client.http.stream("POST", path, json=arguments, headers=named) as stream:
            return list(events_of(stream.iter_lines()))

    assert events("echo", {"text": "hi"})[-1][1]["result"] == "hi"
    name, problem = events("fail", {"text": "no"})[-1]
    assert (name, problem["status"], problem["detail"]) == ("error", 500, "ValueError: no")
    key = {"Idempotency-Key": uuid4().hex}
    body = {"topic": "x", "words": 2}
    assert len(events("write", body, **key)) == 3
    assert [name for name, _ in events("write", body, **key)][-1] == "result"
    refused = client.call("write", {"wrong": 1}, Accept="text/event-stream")
    assert refused.status_code == 422


def test_a_message_is_sent_once_and_has_a_receipt(client: Client) -> None:
    """The agent has no handler for commands, so that the edge refuses; the receipt of a call is its own."""
    agent = f"/v1/agents/{client.world.agent}"
    for body, status in [
        ({"type": "COMMAND", "payload": {"n": 1}}, 404),
        ({"type": "EVENT"}, 400),
        ({"ttl_seconds": 0}, 400),
        ({"ttl_seconds": None}, 400),
        ({"ttl_seconds": 1e300}, 400),
        ({"priority": 3}, 400),
        ({"from_agent": "boss"}, 400),
        ([], 400),
        ({"payload": {"n": 1e308}, "conversation_id": "a b"}, 400),
    ]:
        assert client.http.post(f"{agent}/messages", json=body).status_code == status, body
    task = client.call("echo", {"text": "x"}).json()
    receipt = client.http.get(f"/v1/receipts/{task['task_id']}")
    assert (receipt.status_code, receipt.json()["from_agent"]) == (200, "portal")
    assert client.http.get(f"/v1/receipts/{uuid4()}").status_code == 404


def test_the_openapi_document_describes_each_method(client: Client) -> None:
    """Its references lead somewhere, its schemas are valid, and it names how to authenticate."""
    document = client.http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    path = f"/v1/agents/{client.world.agent}/methods/forecast"
    content = document["paths"][path]["post"]["requestBody"]["content"]
    schema = content["application/json"]["schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["city"] == {"type": "string"}
    assert document["components"]["securitySchemes"]["apiKey"]["name"] == "X-API-Key"
    assert document["security"] == [{"apiKey": []}]

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                yield from references(each)

    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]
    [agent] = client.http.get("/v1/agents").json()["agents"]
    assert agent["name"] == client.world.agent
    assert {"forecast", "review", "write"} <= {each["name"] for each in agent["methods"]}
    assert client.http.get("/v1/agents/nobody").status_code == 404


def test_curl_is_answered(client: Client) -> None:
    """A client that no one here wrote, with the options that the documents show."""
    done = subprocess.run(
        [
            *("curl", "-sS", "--max-time", "30", "-H", f"Authorization: Bearer {KEY[0]}"),
            *("-H", "Content-Type: application/json", "-d", '{"city": "Turin"}'),
            f"{client.url}/v1/agents/{client.world.agent}/methods/forecast",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout)["result"] == {"city": "Turin", "degrees": 21}


def test_an_edge_can_be_mounted(world: EdgeWorld) -> None:
    """Under a prefix of another application: its links have the prefix, and its open path is still one path."""
    edge = create_edge(world.app, EdgeOptions(protocols=[Protocol.HTTP]))
    with (
        served(Starlette(routes=[Mount("/agents", edge.asgi)])) as server,
        httpx2.Client(base_url=f"{server.url}/agents", timeout=30) as http,
    ):
        assert http.get("/health").status_code == 200
        path = f"/v1/agents/{world.agent}/methods/slow"
        answer = http.post(path, json={"seconds": 30}, headers={"Prefer": "respond-async"})
        assert answer.headers["Location"].startswith("/agents/v1/tasks/")
        assert httpx2.delete(server.url + answer.headers["Location"]).status_code in (200, 202)


def test_fifty_streams_at_once(client: Client) -> None:
    """Each gets all of its parts, in order, and its task."""
    path = f"/v1/agents/{client.world.agent}/methods/write"
    headers = {"Accept": "text/event-stream"}
    begin = threading.Barrier(50)  # as many as there are threads

    def read(number: int) -> list[tuple[str, Any]]:
        if number < 50:
            begin.wait(30)
        body = {"topic": f"t{number}", "words": 3}
        with client.http.stream("POST", path, json=body, headers=headers, timeout=60) as stream:
            return list(events_of(stream.iter_lines()))

    with ThreadPoolExecutor(50) as threads:
        found = list(threads.map(read, range(50)))
    for number, events in enumerate(found):
        assert [data for _, data in events[:3]] == [f"t{number}-{word} " for word in range(3)]
        assert events[3][0] == "result"


def test_an_answer_does_not_wait_for_an_acknowledgement(client: Client) -> None:
    """The body follows the headers at once: Nagle's algorithm would hold it back for 40 ms each time."""
    took = []
    for _ in range(20):
        began = time.perf_counter()
        assert client.http.get("/health").status_code == 200
        took.append(time.perf_counter() - began)
    assert min(took) < 0.035
