"""Clients of the HTTP edge that go away, are slow, send half a request or two in one, or open too many."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import httpx2
import pytest
from edge_server import Served, served
from edge_world import EdgeWorld, edge_world
from support import until

from waooaw_celery.edges import EdgeOptions, Protocol, create_edge
from waooaw_celery.edges.access.authentication import ApiKeys
from waooaw_celery.edges.access.principals_file import new_key, parse_principals
from waooaw_celery.edges.protection import connections
from waooaw_celery.edges.protection.bounds import Bounds, Protection
from waooaw_celery.messages.enums import MessageStatus
from waooaw_celery.testing.embedded import valkey


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeWorld]:
    folder = tmp_path_factory.mktemp("http-edge-clients")
    with valkey() as url, edge_world(url, f"sqlite:///{folder / 'ledger.db'}", folder) as made:
        yield made


@contextmanager
def edge_of(world: EdgeWorld, **options: Any) -> Iterator[Served]:
    """Serve an edge for everybody."""
    edge = create_edge(world.app, EdgeOptions(protocols=[Protocol.HTTP], **options))
    with served(edge.asgi) as server:
        yield server


def raw(server: Served, data: bytes) -> socket.socket:
    """Connect, and send some bytes."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(data)
    return connection


def request_of(world: EdgeWorld, method: str, arguments: Any, *headers: str) -> bytes:
    """Return a request as bytes."""
    body = json.dumps(arguments).encode()
    lines = [
        f"POST /v1/agents/{world.agent}/methods/{method} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def answer_of(connection: socket.socket) -> bytes:
    """Return what comes until the server closes the connection, or as much as ends with an empty line."""
    found = b""
    while b"\r\n\r\n" not in found and (part := connection.recv(65_536)):
        found += part
    return found


def last_task(world: EdgeWorld, method: str) -> Any:
    """Return the newest record of a call."""
    page = world.trail.query(to_agent=world.agent, handler=method, limit=1)
    return page.records[0].receipt if page.records else None


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("cancel", [False, True])
def test_a_client_that_goes_away_ends_its_task_only_if_that_is_set(
    world: EdgeWorld, accept: str, cancel: bool
) -> None:
    """The handler is stopped, or goes on to its end; both for a call and for a stream."""
    method = "slow" if accept == "application/json" else "write"
    arguments: dict[str, Any] = {"topic": "x", "words": 600 if cancel else 10, "pause": 0.1}
    if method == "slow":
        arguments = {"seconds": 60 if cancel else 1}
    before = last_task(world, method)
    known = before.message_id if before else None
    with edge_of(world, cancel_when_gone=cancel) as server:
        connection = raw(server, request_of(world, method, arguments, f"Accept: {accept}"))
        until(
            lambda: (
                (found := last_task(world, method)) is not None
                and found.message_id != known
                and found.status is MessageStatus.DELIVERED
            ),
            "the handler",
        )
        connection.close()
        expected = MessageStatus.CANCELLED if cancel else MessageStatus.HANDLED
        until(lambda: last_task(world, method).status is expected, f"the task to be {expected}")


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (["Content-Length: 5", "Transfer-Encoding: chunked"], b"0\r\n\r\n", b"400"),
        (["Content-Length: 5", "Content-Length: 6"], b"hello", b"400"),
        (["Content-Length: -1"], b"", b"400"),
        (["Content-Length: " + "9" * 18], b"", b"413"),
        (["Content-Length: " + "9" * 5000], b"", b"400"),
        (["Transfer-Encoding: gzip, chunked"], b"", b"400"),
        (["Host: evil.example"], b"", b"400"),
        (["Origin: https://evil.example"], b"", b"403"),
        (["Origin: null"], b"", b"403"),
        (["Bad Header: x"], b"", b"400"),
        (["X: " + "y" * 60_000], b"", b"431"),
    ],
    ids=range(11),
)
def test_an_ambiguous_request_is_refused(
    plain_edge: Served, headers: list[str], body: bytes, status: bytes
) -> None:
    """Two lengths, two names of the host, a page of another site, headers that are too large."""
    lines = ["POST /v1/events HTTP/1.1", "Host: localhost", *headers]
    with closing(raw(plain_edge, "\r\n".join(lines).encode() + b"\r\n\r\n" + body)) as connection:
        assert answer_of(connection).split(b" ")[1] == status
    assert httpx2.get(f"{plain_edge.url}/health").status_code == 200


@pytest.fixture(scope="module")
def plain_edge(world: EdgeWorld) -> Iterator[Served]:
    with edge_of(world) as server:
        yield server


def test_a_page_of_another_site_cannot_reach_it_by_its_own_name(world: EdgeWorld) -> None:
    """The edge answers only to its names."""
    with edge_of(world, hosts=["localhost"]) as server:
        assert httpx2.get(f"{server.url}/health").status_code == 421
        assert httpx2.get(f"{server.url}/health", headers={"Host": "localhost:1"}).status_code == 200


def test_a_websocket_is_refused() -> None:
    """Before any protocol sees it: what authenticates requests does not authenticate it."""
    sent: list[str] = []

    async def protocol(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    nobody = ApiKeys(parse_principals({"a": {"from_agent": "a", "keys": [new_key()[1]]}}))
    protection = Protection(protocol, authentication=nobody, hosts=(), bounds=Bounds())
    asyncio.run(protection({"type": "websocket", "path": "/", "headers": []}, receive, send))
    assert sent == ["websocket.close"]


def test_wrong_credentials_do_not_lock_out_right_ones(world: EdgeWorld) -> None:
    """Who guesses is told to wait; who has a key gets in from the same address."""
    key, hashed = new_key()
    keys = ApiKeys(parse_principals({"portal": {"from_agent": "portal", "keys": [hashed]}}))
    with edge_of(world, authentication=keys) as server, httpx2.Client(base_url=server.url) as http:
        statuses = [http.get("/v1/agents", headers={"X-API-Key": str(number)}).status_code for number in range(22)]
        assert (statuses[0], statuses[-1]) == (401, 429)
        assert http.get("/v1/agents", headers={"X-API-Key": key}).status_code == 200


def test_a_slow_body_is_not_waited_for(world: EdgeWorld) -> None:
    """It is answered with 408, and a client that sends half a body and goes away leaves nothing open."""
    with edge_of(world, bounds=Bounds(body_seconds=0.3, max_requests=1)) as server:
        whole = request_of(world, "echo", {"text": "x" * 100})
        with closing(raw(server, whole[:-50])) as connection:
            assert answer_of(connection).split(b" ")[1] == b"408"
        raw(server, whole[:-50]).close()
        until(lambda: httpx2.get(f"{server.url}/v1/agents").status_code == 200, "the edge to be free again")


def test_slow_headers_are_not_waited_for(world: EdgeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those of the first request of a connection, nor those of the next one."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with edge_of(world) as server:
        with closing(raw(server, b"GET /health HT")) as connection:
            assert connection.recv(100) == b""
        with closing(raw(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")) as connection:
            found = b""
            while b"alive" not in found:
                found += connection.recv(1000)
            connection.sendall(b"GET /hea")
            with suppress(ConnectionError):
                assert connection.recv(100) == b""
        answer = httpx2.post(f"{server.url}/v1/agents/{world.agent}/methods/slow", json={"seconds": 1.0})
        assert answer.json()["result"] == "done"  # a long answer is no slow header


def test_a_client_that_does_not_read_is_dropped(world: EdgeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is closed once the buffers are full for too long."""
    monkeypatch.setattr(connections, "READ_SECONDS", 0.3)
    with edge_of(world) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.settimeout(20)
        with closing(connection):
            connection.sendall(request_of(world, "echo", {"text": "x" * 3_900_000}))
            until(lambda: server.server.server_state.connections, "the connection")
            until(lambda: not server.server.server_state.connections, "the end of the connection")


def test_too_many_open_requests_are_refused(world: EdgeWorld) -> None:
    """Those of one principal with 429, those of all with 503, both with a time to try again."""
    for bounds, status in [
        (Bounds(max_requests_each=1), 429),
        (Bounds(max_requests=1), 503),
    ]:
        with edge_of(world, bounds=bounds, cancel_when_gone=True) as server:
            with closing(raw(server, request_of(world, "slow", {"seconds": 30}))):
                until(
                    lambda server=server: httpx2.get(f"{server.url}/v1/agents").status_code != 200,  # type: ignore[misc]
                    "the first request",
                )
                refused = httpx2.get(f"{server.url}/v1/agents")
                assert (refused.status_code, refused.headers["Retry-After"]) == (status, "1")
            until(
                lambda server=server: httpx2.get(f"{server.url}/v1/agents").status_code == 200,  # type: ignore[misc]
                "the end of the first",
            )


def test_an_edge_that_stops_ends_its_streams_and_not_their_tasks(world: EdgeWorld) -> None:
    """A client of a stream sees its end; the handler goes on, though clients that go away cancel theirs."""
    edge = create_edge(world.app, EdgeOptions(protocols=[Protocol.HTTP], cancel_when_gone=True))
    body = {"topic": "x", "words": 15, "pause": 0.1}
    with served(edge.asgi) as server:
        url = f"{server.url}/v1/agents/{world.agent}/methods/write"
        with httpx2.stream("POST", url, json=body, headers={"Accept": "text/event-stream"}, timeout=30) as stream:
            lines = stream.iter_lines()
            while not next(lines).startswith("data:"):
                pass
            edge.stop()
            assert len(list(lines)) < 60  # it ended in order, before the last part
    until(lambda: last_task(world, "write").status is MessageStatus.HANDLED, "the end of the task")
