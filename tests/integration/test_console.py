"""The console in this process, on a ledger that real agents made: its pages, roles, forms and errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import psutil
import pytest
import redis
import sqlalchemy
from console_world import HOSTILE, IDENTITY, ORDER, World, console_world
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient
from support import lone_database, settled, until

from waooaw_celery import Message, MessageBus, MessageStatus, create_app
from waooaw_celery.agents import Workflows
from waooaw_celery.console.access.authentication import Authentication
from waooaw_celery.console.access.roles import Person, Role
from waooaw_celery.console.application import ConsoleOptions, create_console
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.operators.actions import ActionOutcome, list_actions
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.testing.embedded import valkey

#: The paths of all pages, for ``str.format`` with the facts of the world.
PATHS = (
    "/",
    "/agents",
    "/agents?order=slowest",
    "/agents/{0.agent}",
    "/messages",
    "/messages?from=shop&status=failed",
    "/messages/{0.handled}",
    "/messages/{0.failed}",
    "/messages/{0.event}",
    "/messages/{0.request}",
    "/conversations/{0.handled}",
    "/conversations/{0.request}",
    "/conversations/{0.failed}?message={0.failed}",
    "/dead-letters",
    "/dead-letters?reason=script",
    "/dead-letters/{0.letter}",
    "/workflows",
    "/workflows/{0.workflow}",
    "/workflows/{0.failed_workflow}",
    "/topics",
    "/limits",
    "/retention",
    "/ledger",
    "/changes",
)

Client: TypeAlias = TestClient
Open: TypeAlias = Callable[..., Client]


class Named(Authentication):
    """Everybody is one person with some roles; nobody without a role."""

    def __init__(self, *roles: Role) -> None:
        self.roles = roles

    def identify(self, connection: HTTPConnection) -> Person | Response:
        if not self.roles:
            return PlainTextResponse("who are you?", 401)
        return Person(name="ada", roles=frozenset(self.roles))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(
    request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("console")
    if request.param == "sqlite":
        with console_world(redis_url, f"sqlite:///{folder / 'ledger.sqlite'}", folder) as found:
            yield found
        return
    postgres_url: str = request.getfixturevalue("postgres_url")
    with lone_database(postgres_url) as url, console_world(redis_url, url, folder) as found:
        yield found


@pytest.fixture
def open_console(world: World) -> Iterator[Open]:
    clients: list[Client] = []

    def opened(*roles: Role, allow_changes: bool = True) -> Client:
        options = ConsoleOptions(authentication=Named(*roles), hosts=["testserver"], allow_changes=allow_changes)
        client = TestClient(create_console(world.app, options).asgi, raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        return client

    yield opened
    for client in clients:
        client.__exit__(None, None, None)


def token(client: Client) -> str:
    """Return the token that forms have."""
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', client.get("/limits").text)
    assert found is not None
    return found[1]


def change(client: Client, action: str, **fields: str | list[str]) -> str:
    """Send a form, and return what the page says was done."""
    given = {"csrf": token(client), "reason": "because", "back": "/changes", **fields}
    answer = client.post(f"/changes/{action}", data=given)
    assert answer.status_code == 200, answer.text
    found = re.search(r'role="status">(.*?)</div>', answer.text, re.DOTALL)
    assert found is not None, answer.text
    return unescape(re.sub(r"<[^>]+>|\s+", " ", found[1]))


@pytest.mark.parametrize("path", PATHS)
def test_a_page_is_drawn_and_escapes_hostile_text(open_console: Open, world: World, path: str) -> None:
    """Nothing of a payload, an error, a reason or an identity becomes a tag, and security headers are set."""
    answer = open_console(*Role).get(path.format(world))
    assert answer.status_code == 200
    assert "window.hacked=1</script>" not in answer.text
    assert "<img" not in answer.text
    assert "{{7*7}}" in answer.text or "&gt;49" not in answer.text
    assert "\x1b" not in answer.text
    assert not re.search(r"<[^>]+ (style|onclick|onerror|onload)=", answer.text)
    assert re.findall(r"<script[^>]*>", answer.text) == [
        f'<script src="/static/{name}" defer>' for name in ("htmx.min.js", "htmx-sse.min.js", "console.js")
    ]
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-store"


def test_hostile_text_is_shown_as_it_is(open_console: Open, world: World) -> None:
    """It is escaped, not removed: the officer must see what was sent."""
    client = open_console(*Role)
    assert '"text": "<script>window.hacked=1</script>' in unescape(client.get(f"/messages/{world.handled}").text)
    assert "ValueError: <script>window.hacked=1" in unescape(client.get(f"/messages/{world.failed}").text)
    assert "<script>window.hacked=1" in unescape(client.get(f"/workflows/{world.failed_workflow}").text)
    assert "<script>window.hacked=1" in unescape(client.get("/retention").text)
    assert "<script>window.hacked=1" in unescape(client.get("/limits").text)


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR])
def test_only_an_officer_sees_payloads(open_console: Open, world: World, role: Role) -> None:
    """Others see neither payloads, inputs nor results, and cannot search in them."""
    client = open_console(role)
    for path in (f"/messages/{world.handled}", f"/workflows/{world.workflow}", f"/dead-letters/{world.letter}"):
        text = client.get(path).text
        assert "Only an officer sees payloads" in text
        assert "&#34;text&#34;" not in text
        assert "&#34;fail&#34;" not in text
    [record] = MessageAuditTrail(world.app.ledger).conversation(world.handled)
    for path in (f"/messages/{world.handled}", f"/conversations/{world.handled}/page"):
        assert record.payload_digest not in client.get(path).text  # it confirms a guess
    assert client.get(f"/messages/{world.handled}/json").status_code == 403
    assert client.get("/messages?text=hacked").status_code == 403
    assert client.get("/workflows?text=hacked").status_code == 403
    officer = open_console(Role.OFFICER)
    assert officer.get(f"/messages/{world.handled}/json").json()["payload"]["text"] == HOSTILE
    assert record.payload_digest in officer.get(f"/messages/{world.handled}").text
    assert world.handled in officer.get("/messages?text=hacked").text


def test_half_a_surrogate_pair_in_a_payload_is_shown(open_console: Open, world: World) -> None:
    """UTF-8 cannot write it, JSON can, as an escape."""
    message_id = MessageBus(world.app).send_to("shop", world.agent, {"half": "\ud800"}).message_id
    client = open_console(Role.OFFICER)
    assert '"half": "\\ud800"' in unescape(client.get(f"/messages/{message_id}").text)
    assert client.get(f"/messages/{message_id}/json").json()["payload"] == {"half": "\ud800"}


def test_a_search_finds_by_each_field(open_console: Open, world: World) -> None:
    """And says which value is not valid."""
    client = open_console(*Role)
    [record] = MessageAuditTrail(world.app.ledger).conversation(world.handled)
    for query, expected in (
        (f"from=shop&to={world.agent}&status=handled", world.handled),
        (f"correlation_id={ORDER}", world.handled),
        (f"conversation_id={record.conversation_id}", world.handled),
        ("status=failed&handler=command", world.failed),
        (f"handler=echo&to={world.agent}", world.request),
        (f"topic={world.topic}.*&type=event", world.event),
        ("status=published&since=2026-01-01T00:00&until=2999-01-01", world.event),
    ):
        found = client.get(f"/messages?{query}")
        assert found.status_code == 200
        assert expected in found.text, query
    assert world.handled in client.get("/messages", params={"identity": IDENTITY}).text
    for name in ("handler", "identity", "topic", "from", "correlation_id"):
        assert client.get("/messages", params={name: "\x00"}).status_code == 400, name
    assert client.get("/messages", params={"after": "2026-11-30T00:00|\x00"}).status_code == 400
    for name in ("name", "agent", "text", "page"):
        assert client.get("/workflows", params={name: "\x00"}).status_code == 400, name
    early, late = "0001-01-01T00:00%2B14:00", "9999-12-31T23:59-14:00"
    for query in (
        f"since={early}",
        f"until={late}",
        f"after={early}|x",
        "from=NOT VALID",
        "since=yesterday",
        "status=lost",
        "priority=very",
        "after=x|y",
        "topic=a..b",
    ):
        found = client.get(f"/messages?{query}")
        assert found.status_code == 400, query
        assert "note bad" in found.text


def test_pages_follow_each_other(open_console: Open, world: World) -> None:
    """The link to the next page continues where this one ends, and no message is shown twice."""
    bus = MessageBus(world.app)
    sender = f"many-{uuid4().hex[:6]}"
    bus.send_many([Message(from_agent=sender, to_agent=world.agent, payload={"n": n}) for n in range(120)])
    client = open_console(*Role)
    path, seen = f"/messages?from={sender}", []
    for _ in range(5):
        text = client.get(path).text
        seen += re.findall(r'class="id" href="/messages/([^"]+)"', text)
        link = re.search(r'href="(/messages\?[^"]*after=[^"]+)"', text)
        if link is None:
            break
        path = unescape(link[1])
    assert len(seen) == len(set(seen)) == 120


def test_the_search_box_finds_what_an_id_names(open_console: Open, world: World) -> None:
    """An agent, a message, a workflow, and an order by its correlation id."""
    client = open_console(*Role)
    for text, path in (
        (world.agent, f"/agents/{world.agent}"),
        (world.handled, f"/messages/{world.handled}"),
        (ORDER, f"/conversations/{ORDER}"),
        (world.workflow, f"/workflows/{world.workflow}"),
        (f" {world.handled} ", f"/messages/{world.handled}"),
        ("", "/"),
    ):
        answer = client.get("/find", params={"q": text}, follow_redirects=False)
        assert (answer.status_code, answer.headers["Location"]) == (303, path)
    for text in ("order-18", HOSTILE, "x" * 5000, "\x00"):
        assert client.get("/find", params={"q": text}).status_code == 404


def test_what_is_unknown_is_a_page(open_console: Open) -> None:
    """An unknown id or page is 404 with a sentence, not a traceback."""
    client = open_console(*Role)
    for path in (
        f"/messages/{uuid4()}",
        f"/conversations/{uuid4()}",
        f"/workflows/{uuid4()}",
        "/agents/nobody",
        "/dead-letters/1-1",
        "/nothing",
        "/static/nothing",
        f"/changes?change={uuid4()}",
        "/changes?change=%00",
        "/changes?after=2026-11-30T00:00|%00",
    ):
        answer = client.get(path)
        assert answer.status_code == (200 if path.startswith("/changes") else 404), path
        assert "Traceback" not in answer.text


def test_a_read_only_console_changes_nothing(open_console: Open, world: World) -> None:
    """It has no forms that change something, and refuses them when they are sent all the same."""
    client = open_console(*Role, allow_changes=False)
    for path in PATHS:
        assert 'method="post"' not in client.get(path.format(world)).text or path.startswith("/dead-letters")
    other = open_console(*Role)
    answer = client.post("/changes/pause-sender", data={"csrf": token(other), "agent": "x", "reason": "y"})
    assert answer.status_code == 403
    assert "read-only" in answer.text
    assert "x" not in {pause.agent for pause in world.app.restrictions.pauses()}


@pytest.mark.parametrize(
    ("roles", "action", "expected"),
    [
        ((Role.VIEWER,), "pause-sender", "You need the role operator"),
        ((Role.OFFICER,), "pause-sender", "You need the role operator"),
        ((Role.OPERATOR,), "erase", "You need the role officer"),
        ((Role.OPERATOR,), "edit-dead-letter", "You need the role officer"),
        ((), "pause-sender", "who are you"),
        (tuple(Role), "drop-everything", "There is no such change"),
    ],
)
def test_a_change_needs_its_role(
    open_console: Open, world: World, roles: tuple[Role, ...], action: str, expected: str
) -> None:
    """Nothing is changed or recorded without it."""
    client = open_console(*roles)
    before = len(list_actions(world.app.database))
    given = {
        "csrf": token(client) if Role.OPERATOR in roles else "",
        "agent": "y",
        "reason": "z",
        "confirm": "erase",
    }
    if not given["csrf"] and roles:
        found = re.search(r'name="csrf" value="(\w+)"', client.get("/dead-letters").text)
        given["csrf"] = found[1] if found else ""
    answer = client.post(f"/changes/{action}", data=given)
    assert answer.status_code in (401, 403)
    assert expected in answer.text
    assert len(list_actions(world.app.database)) == before


@pytest.mark.parametrize(
    ("headers", "forged"),
    [
        ({}, {"csrf": "0" * 64}),
        ({}, {"csrf": ""}),
        ({"Origin": "https://evil.example"}, {}),
        ({"Origin": "null"}, {}),
        ({"Sec-Fetch-Site": "cross-site"}, {}),
        ({"Host": "evil.example"}, {}),
        ({"Host": "["}, {}),
        ({"Host": "testserver/elsewhere?"}, {}),
        ({"Host": "ada@testserver"}, {}),
        ({"Origin": "http://["}, {}),
    ],
)
def test_a_form_of_another_site_is_refused(
    open_console: Open, world: World, headers: dict[str, str], forged: dict[str, str]
) -> None:
    """A change needs the token of this person's page, this origin and this host (OWASP's CSRF cases)."""
    client = open_console(*Role)
    given = {"csrf": token(client), "agent": "forged", "reason": "r", **forged}
    answer = client.post("/changes/pause-sender", data=given, headers=headers)
    assert answer.status_code in (400, 403)
    assert "forged" not in {pause.agent for pause in world.app.restrictions.pauses()}


def test_a_token_belongs_to_one_browser(open_console: Open, world: World) -> None:
    """That of another browser does not count."""
    mine, other = open_console(*Role), open_console(*Role)
    mine.get("/")
    answer = mine.post("/changes/pause-sender", data={"csrf": token(other), "agent": "stolen", "reason": "r"})
    assert answer.status_code == 403
    assert "stolen" not in {pause.agent for pause in world.app.restrictions.pauses()}


@pytest.mark.parametrize("back", ["//evil.example/", "https://evil.example/x", "/\\evil.example", "javascript:x"])
def test_a_form_never_leads_to_another_site(open_console: Open, back: str) -> None:
    """Whatever the form says, the browser is sent to a page of this console."""
    client = open_console(*Role)
    given = {"csrf": token(client), "agent": "a", "reason": "r", "back": back}
    answer = client.post("/changes/reset-quota", data=given, follow_redirects=False)
    location = answer.headers["Location"]
    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))


def test_a_change_is_in_the_ledger(open_console: Open, world: World) -> None:
    """Who, what, why and what came of it, also when it fails; and without a reason nothing happens."""
    client = open_console(*Role)
    assert "loud may not send" in change(client, "pause-sender", agent="loud", reason=HOSTILE)
    assert {pause.by for pause in world.app.restrictions.pauses() if pause.agent == "loud"} == {"ada"}
    done = list_actions(world.app.database)[0]
    assert (done.person, done.action, done.target) == ("ada", "pause-sender", "loud")
    assert (done.outcome, done.address) == (ActionOutcome.DONE, "testclient")
    assert done.ended_at is not None
    assert "loud may send again" in change(client, "resume-sender", agent="loud")
    assert "Not done" in change(client, "resume-sender", agent="loud")
    assert list_actions(world.app.database)[0].outcome is ActionOutcome.FAILED
    number = len(list_actions(world.app.database))
    answer = client.post("/changes/pause-sender", data={"csrf": token(client), "agent": "b", "reason": "  "})
    assert answer.status_code == 400
    assert "needs a reason" in answer.text
    assert len(list_actions(world.app.database)) == number


def test_a_change_whose_end_cannot_be_recorded_says_that_it_was_made(open_console: Open, world: World) -> None:
    """Or else the person makes it again."""
    client, database = open_console(*Role), world.app.database
    if database.engine.dialect.name == "sqlite":
        break_ = (
            "CREATE TRIGGER full BEFORE UPDATE ON waooaw_operator_actions BEGIN SELECT RAISE(FAIL, 'full'); END"
        )
        mend = "DROP TRIGGER full"
    else:
        break_ = "ALTER TABLE waooaw_operator_actions ADD CONSTRAINT broken CHECK (ended_at IS NULL) NOT VALID"
        mend = "ALTER TABLE waooaw_operator_actions DROP CONSTRAINT broken"
    given = {"csrf": token(client), "agent": "unsure", "reason": "r"}
    with database.begin("break the table") as connection:
        connection.execute(sqlalchemy.text(break_))
    try:
        answer = client.post("/changes/pause-sender", data=given)
    finally:
        with database.begin("mend the table") as connection:
            connection.execute(sqlalchemy.text(mend))
    assert answer.status_code == 503
    assert "The change was made: unsure may not send." in answer.text
    assert "unsure" in {pause.agent for pause in world.app.restrictions.pauses()}
    assert list_actions(database)[0].outcome is ActionOutcome.BEGUN
    assert "begun" in client.get("/changes").text


def test_agents_are_steered(open_console: Open, world: World) -> None:
    """Status, weight, circuit breaker and quota."""
    client = open_console(Role.OPERATOR)
    agent = world.agent
    assert "is maintenance" in change(client, "set-agent-status", agent=agent, status="maintenance")
    assert "ada set it to maintenance" in client.get(f"/agents/{agent}").text
    assert "is online" in change(client, "set-agent-status", agent=agent, status="online")
    assert "has the weight 0.5" in change(client, "set-agent-weight", agent=agent, weight="0.5")
    assert "has the weight 1" in change(client, "set-agent-weight", agent=agent, weight="")
    assert "are refused" in change(client, "open-breaker", agent=agent, seconds="")
    assert "opened by ada" in client.get(f"/agents/{agent}").text
    assert "let through" in change(client, "close-breaker", agent=agent)
    assert "10/second" in change(client, "set-quota", agent="shop", quota="10/second")
    assert "10/second" in client.get("/limits").text
    assert "1000/second" in change(client, "set-quota", agent="shop", quota="")
    assert "may send again" in change(client, "reset-quota", agent="shop")
    for action, fields in (
        ("set-agent-status", {"agent": agent, "status": "asleep"}),
        ("set-agent-weight", {"agent": agent, "weight": "heavy"}),
        ("set-quota", {"agent": "shop", "quota": "a lot"}),
        ("open-breaker", {"agent": "nobody"}),
        ("set-agent-status", {}),
    ):
        assert "Not done" in change(client, action, **fields)


def test_dead_letters_are_retried_edited_and_discarded(open_console: Open, world: World) -> None:
    """An edited payload goes out as a new message, caused by the dead one, and is handled."""
    client, app = open_console(*Role), world.app
    bus = MessageBus(app)
    failing = [bus.send_to("shop", world.agent, {"fail": f"edit {n}"}).message_id for n in range(3)]
    for message_id in failing:
        assert settled(app, message_id) is MessageStatus.FAILED
    letters = {id_: app.dead_letters.list(message_id=id_)[0].id for id_ in failing}
    assert letters[failing[0]] in client.get(f"/messages/{failing[0]}").text
    said = change(client, "edit-dead-letter", id=letters[failing[0]], payload='{"fixed": "é"}')
    new_id = said.rpartition(" message ")[2].strip().removesuffix(".")
    assert settled(app, new_id) is MessageStatus.HANDLED
    record = MessageAuditTrail(app.ledger).receipt(new_id)
    assert (record.payload, record.causation_id) == ({"fixed": "é"}, failing[0])
    events = [event.error for event in MessageAuditTrail(app.ledger).receipt(failing[0]).events]
    assert f"as {new_id} by ada, with an edited payload" in events
    assert app.dead_letters.list(message_id=failing[0]) == []
    assert "2 dead letters were sent again" in change(
        client, "retry-dead-letters", id=[letters[failing[1]], letters[failing[2]]]
    )
    for message_id in failing[1:]:
        until(lambda id_=message_id: not app.dead_letters.list(message_id=id_), "the letter to go")  # type: ignore[misc]
    until(lambda: len(app.dead_letters.list(reason="edit")) == 2, "the copies to die again")
    ids = [letter.id for letter in app.dead_letters.list(reason="edit")]
    assert "2 dead letters were discarded" in change(client, "discard-dead-letters", id=ids)
    for fields in ({"id": "1-1"}, {}, {"id": world.letter, "payload": "{not json"}):
        action = "edit-dead-letter" if "payload" in fields else "retry-dead-letters"
        assert "Not done" in change(client, action, **fields)
    assert app.dead_letters.get(world.letter).message_id == world.failed


def test_two_people_edit_a_dead_letter(open_console: Open, world: World) -> None:
    """At the same time, each in another way: it is sent once, and the other one is told."""
    app, clients = world.app, [open_console(*Role) for _ in range(4)]
    tokens = [token(client) for client in clients]
    message_id = MessageBus(app).send_to("shop", world.agent, {"fail": "edit me"}).message_id
    assert settled(app, message_id) is MessageStatus.FAILED
    [letter] = app.dead_letters.list(message_id=message_id)

    def edit(number: int) -> str:
        given = {"csrf": tokens[number], "reason": "r", "back": "/agents", "id": letter.id}
        return (
            clients[number].post("/changes/edit-dead-letter", data={**given, "payload": f'{{"n": {number}}}'}).text
        )

    with ThreadPoolExecutor(len(clients)) as threads:
        answers = list(threads.map(edit, range(len(clients))))
    assert sum("Sent again with the edited payload" in each for each in answers) == 1
    assert sum("there is no dead letter" in each for each in answers) == 3


def test_a_form_has_the_whole_payload_and_its_types(open_console: Open, world: World) -> None:
    """Who edits one word of a large payload with a time and bytes sends the rest as it was."""
    client, app = open_console(*Role), world.app
    payload = {"fail": "edit", "long": "é" * 1_200_000, "at": datetime(2026, 11, 30, tzinfo=UTC), "raw": b"\xff"}
    message_id = MessageBus(app).send_to("shop", world.agent, payload).message_id
    assert settled(app, message_id) is MessageStatus.FAILED
    [letter] = app.dead_letters.list(message_id=message_id)
    form = re.search(r"<textarea[^>]*>(.*?)</textarea>", client.get(f"/dead-letters/{letter.id}").text, re.DOTALL)
    assert form is not None
    edited = unescape(form[1]).replace('"fail"', '"fixed"')
    for wrong in ('{"__type__": "uuid", "__value__": 7}', '{"__type__": "datetime", "__value__": "x"}'):
        assert "is not JSON" in change(client, "edit-dead-letter", id=letter.id, payload=wrong)
    said = change(client, "edit-dead-letter", id=letter.id, payload=edited)
    new_id = said.rpartition(" message ")[2].strip().removesuffix(".")
    assert settled(app, new_id) is MessageStatus.HANDLED
    assert MessageAuditTrail(app.ledger).receipt(new_id).payload == {
        "fixed": "edit", **{name: value for name, value in payload.items() if name != "fail"}
    }  # fmt: skip


def test_workflows_are_steered(open_console: Open, world: World) -> None:
    """Pause, resume, signal; retry what failed; cancel."""
    client, workflows = open_console(Role.OPERATOR), Workflows(world.app)
    found = workflows.start(f"{world.agent}.approve", {"text": "x"})
    id_ = found.workflow_id
    until(lambda: workflows.get(id_).waits_for, "it waits")
    change(client, "pause-workflow", workflow=id_)
    until(lambda: workflows.get(id_).status == "paused", "it is paused")
    change(client, "resume-workflow", workflow=id_)
    assert "Sent the signal" in change(
        client, "signal-workflow", workflow=id_, signal="approval", payload='{"ok": 1}'
    )
    assert workflows.result(id_, 30) == {"ok": 1}
    assert "Not done" in change(client, "signal-workflow", workflow=id_, signal="approval")
    assert "run 2" in change(client, "retry-workflow", workflow=world.failed_workflow, from_step="")
    until(lambda: workflows.get(world.failed_workflow).status == "failed", "it fails again")
    parent = workflows.start(f"{world.agent}.parent", {"text": "x"}).workflow_id
    until(lambda: workflows.list(parent_id=parent).workflows, "its child")
    [child] = workflows.list(parent_id=parent).workflows
    assert f'href="/workflows/{child.workflow_id}"' in client.get(f"/workflows/{parent}").text
    assert f'href="/workflows/{parent}"' in client.get(f"/workflows/{child.workflow_id}").text
    other = workflows.start(f"{world.agent}.approve", {"text": "x"}).workflow_id
    change(client, "cancel-workflow", workflow=other, compensate="1")
    until(lambda: workflows.get(other).status.final, "it is cancelled")


def test_subscriptions_holds_and_erasures(open_console: Open, world: World) -> None:
    """An erasure needs the word, and its record does not have the text that was erased."""
    client, app = open_console(*Role), world.app
    subscriber = f"{world.agent}.paid"
    assert "gets no more events" in change(client, "unsubscribe", subscriber=subscriber)
    assert "gets events again" in change(client, "resubscribe", subscriber=subscriber)
    message_id = MessageBus(app).send_to("shop", world.agent, {"name": "Erika Mustermann"}).message_id
    settled(app, message_id)
    assert "Placed a hold" in change(client, "place-hold", kind="message", value=message_id)
    assert message_id in client.get("/retention").text
    assert "Released" in change(client, "release-hold", kind="message", value=message_id)
    assert "Not done" in change(client, "release-hold", kind="message", value=message_id)
    assert "Not done" in change(client, "erase", containing="Erika Mustermann", confirm="yes")
    assert "Erased" in change(client, "erase", containing="Erika Mustermann", confirm="erase")
    assert MessageAuditTrail(app.ledger).receipt(message_id).erased_at is not None
    assert "It was erased" in client.get(f"/messages/{message_id}").text
    assert "Erika" not in client.get("/changes").text


def test_a_form_that_is_too_large_is_refused(open_console: Open) -> None:
    """It is not read into memory."""
    client = open_console(*Role)
    answer = client.post("/changes/pause-sender", data={"csrf": token(client), "reason": "x" * (17 * 1024 * 1024)})
    assert answer.status_code == 413


def test_all_checks_are_run(open_console: Open, world: World) -> None:
    """The page has the findings of `waooaw doctor`."""
    text = open_console(Role.VIEWER).get("/ledger/checks").text
    assert world.agent in text
    assert text.count("<tr>") > 5


def test_the_live_page_sends_events(open_console: Open, world: World) -> None:
    """An event has the whole live part."""
    client = open_console(Role.VIEWER)
    with client.stream("GET", "/live/overview") as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = []
        for line in answer.iter_lines():
            lines.append(line)
            if line == "":
                break
    assert lines[0] == "event: overview"
    assert any(world.agent in line for line in lines)


def test_without_a_ledger_the_rest_works(redis_url: str, tmp_path: Path) -> None:
    """Pages of the ledger say that they need one, and changes are refused from the start."""
    with create_app(broker_url=redis_url, result_backend=redis_url, waooaw_spool_folder=str(tmp_path)) as app:
        options = ConsoleOptions(authentication=Named(*Role), hosts=["testserver"])
        with TestClient(create_console(app, options).asgi, raise_server_exceptions=False) as client:
            for path in ("/", "/agents", "/dead-letters", "/topics", "/limits"):
                assert client.get(path).status_code == 200, path
            for path in ("/messages", "/workflows", "/retention", "/ledger", "/changes"):
                answer = client.get(path)
                assert answer.status_code == 400, path
                assert "waooaw_database_url" in answer.text
        with pytest.raises(ConfigurationError, match="changes need a ledger"):
            create_console(app, ConsoleOptions(authentication=Named(), hosts=[], allow_changes=True))


def test_servers_that_do_not_answer_are_named(tmp_path: Path) -> None:
    """The console starts and says so; no page waits for ever, and none is an error of the program."""
    nowhere = "redis://127.0.0.1:9/0"  # the discard port
    with create_app(
        broker_url=nowhere, result_backend=nowhere, waooaw_spool_folder=str(tmp_path),
        waooaw_database_url="postgresql://nobody@127.0.0.1:9/nothing",
    ) as app:  # fmt: skip
        options = ConsoleOptions(authentication=Named(*Role), hosts=["testserver"])
        with TestClient(create_console(app, options).asgi, raise_server_exceptions=False) as client:
            assert "are not current" in client.get("/").text
            for path in ("/messages", "/workflows", "/dead-letters", "/limits", "/retention", "/changes"):
                answer = client.get(path)
                assert answer.status_code == 503, (path, answer.text)
                assert "A server does not answer" in answer.text


def test_agents_that_are_not_current_are_not_shown_as_if_they_were(tmp_path: Path) -> None:
    """The store goes away while people look: the overview and the page of the agents say so."""
    with ExitStack() as servers:
        url = servers.enter_context(valkey())
        ledger = f"sqlite:///{tmp_path / 'ledger.sqlite'}"  # it knows the agents too, and answers
        app = servers.enter_context(
            create_app(
                broker_url=url, result_backend=url, waooaw_spool_folder=str(tmp_path), waooaw_database_url=ledger
            )
        )
        schema.upgrade(app.database)
        options = ConsoleOptions(authentication=Named(*Role), hosts=["testserver"])
        client = servers.enter_context(TestClient(create_console(app, options).asgi))
        assert "not current" not in client.get("/agents").text
        with redis.Redis.from_url(url.replace("redis+socket:", "unix:")) as connection:
            process = psutil.Process(connection.info("server")["process_id"])
        process.suspend()
        try:
            until(lambda: "agents are not current" in client.get("/").text, "the overview to say so")
            answer = client.get("/agents")
            assert answer.status_code == 200
            assert "agents are not current" in answer.text
        finally:
            process.resume()


def test_a_change_during_which_a_server_fails_is_not_called_undone(redis_url: str, tmp_path: Path) -> None:
    """Nobody knows how far it came: the page and the ledger say that it may have been made."""
    nowhere = "redis://127.0.0.1:9/0"  # the discard port
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    with create_app(
        broker_url=nowhere, result_backend=redis_url, waooaw_spool_folder=str(tmp_path), waooaw_database_url=url
    ) as app:
        schema.upgrade(app.database)
        options = ConsoleOptions(authentication=Named(*Role), hosts=["testserver"], allow_changes=True)
        with TestClient(create_console(app, options).asgi, raise_server_exceptions=False) as client:
            token = re.search(r'name="csrf" value="([0-9a-f]{64})"', client.get("/retention").text)
            assert token is not None
            given = {"csrf": token[1], "reason": "r", "id": "1-1", "back": "/changes"}
            answer = client.post("/changes/retry-dead-letters", data=given)
            assert "It may have been done" in answer.text
        [action] = list_actions(app.database)
        assert action.outcome is ActionOutcome.INTERRUPTED
