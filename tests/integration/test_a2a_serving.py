"""Our agents for clients of A2A: the client of a2a-sdk, an edge, a real worker and a real ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest
from a2a.types import (
    CancelTaskRequest,
    DeleteTaskPushNotificationConfigRequest,
    GetExtendedAgentCardRequest,
    GetTaskRequest,
    ListTaskPushNotificationConfigsRequest,
    ListTasksRequest,
    SubscribeToTaskRequest,
    TaskPushNotificationConfig,
)
from a2a.utils.errors import (
    A2AError,
    ContentTypeNotSupportedError,
    InvalidParamsError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from a2a_servers import a2a_client, a2a_edge, message_of, part_values, sent, served, state, task_of, values
from edge_world import EdgeWorld, edge_world
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from support import until

from waooaw_celery.edges.access.authentication import ApiKeys
from waooaw_celery.edges.access.principals_file import new_key, parse_principals
from waooaw_celery.testing.embedded import valkey

BINDINGS = pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
CARD = "/.well-known/agent-card.json"
TOKEN = "t0ken"  # noqa: S105 - a test's


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeWorld]:
    folder = tmp_path_factory.mktemp("a2a")
    with valkey() as url, edge_world(url, f"sqlite:///{folder / 'ledger.db'}", folder) as made:
        yield made


@pytest.fixture(scope="module")
def edge(world: EdgeWorld) -> Iterator[str]:
    with a2a_edge(world.app) as url:
        yield url


@pytest.fixture
def agent(world: EdgeWorld, edge: str) -> str:
    return f"{edge}/a2a/{world.agent}"


@pytest.mark.parametrize("name", ["%00", "%C3%A9", "x" * 200, "UPPER", "..%2fx"])
def test_a_name_that_no_agent_has_is_not_found(edge: str, name: str) -> None:
    """Anybody may ask for a card: a strange name is answered, and is no failure of the edge."""
    assert httpx.get(f"{edge}/a2a/{name}{CARD}").status_code == 404


def test_the_card_shows_what_the_agent_can_do(world: EdgeWorld, edge: str, agent: str) -> None:
    """Each method and workflow is a skill; the card has an ETag, and an unknown agent has none."""
    answer = httpx.get(agent + CARD)
    card = answer.json()
    assert card["name"] == world.agent
    skills = {each["id"]: each for each in card["skills"]}
    assert {"forecast", "echo", "write", "review"} <= set(skills)
    assert skills["forecast"]["description"] == "Tell the weather of a city."
    assert skills["forecast"]["tags"] == ["probe"]
    assert card["capabilities"] == {"streaming": True, "pushNotifications": True, "extendedAgentCard": True}
    assert [each["url"] for each in card["supportedInterfaces"]] == [agent, f"{agent}/v1"]
    again = httpx.get(agent + CARD, headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    unknown = httpx.get(f"{edge}/a2a/nobody{CARD}")
    assert (unknown.status_code, "nobody" in unknown.json()["detail"]) == (404, True)
    assert httpx.get(edge + CARD).status_code == 404


@BINDINGS
def test_a_message_becomes_a_request(world: EdgeWorld, agent: str, binding: str) -> None:
    """Its id is the task's, its data part the arguments, its context the conversation; the ledger has it."""

    async def ask() -> None:
        context = str(uuid4())
        async with a2a_client(agent, binding=binding, streaming=False) as client:
            request = message_of("forecast", {"city": "Turin"}, context_id=context)
            task = await task_of(client, request)
            assert (state(task), values(task)) == ("TASK_STATE_COMPLETED", [{"city": "Turin", "degrees": 21}])
            assert task.context_id == context
            record = world.trail.receipt(task.id)
            assert (record.receipt.handler, record.payload) == ("forecast", {"city": "Turin"})
            assert (record.identity or "").startswith("a2a:")
            assert record.conversation_id == context
            found = await client.get_task(GetTaskRequest(id=task.id))
            assert (state(found), values(found)) == (state(task), values(task))
            assert [part_values(each) for each in found.history] == [[{"city": "Turin"}]]
            assert not (await client.get_task(GetTaskRequest(id=task.id, history_length=0))).history

    asyncio.run(ask())


def test_a_text_is_the_only_text_parameter(agent: str) -> None:
    """A text part needs no data part, and a text comes back as a text."""

    async def ask() -> None:
        async with a2a_client(agent, streaming=False) as client:
            assert values(await task_of(client, message_of("echo", "good", "morning"))) == ["good\nmorning"]

    asyncio.run(ask())


@BINDINGS
def test_a_stream_comes_in_parts(world: EdgeWorld, agent: str, binding: str) -> None:
    """The task, then each part of the artifact, appended, and the end once."""

    async def ask() -> None:
        async with a2a_client(agent, binding=binding) as client:
            events = await sent(client, message_of("write", "tides", {"words": 4}))
            assert events[0].HasField("task")
            parts = [each.artifact_update for each in events if each.HasField("artifact_update")]
            assert [value for part in parts for value in part_values(part.artifact)] == [
                f"tides-{number} " for number in range(4)
            ]
            assert [part.append for part in parts] == [False, True, True, True]
            states = [state(each.status_update) for each in events if each.HasField("status_update")]
            assert states == ["TASK_STATE_WORKING", "TASK_STATE_COMPLETED"]
            found = await client.get_task(GetTaskRequest(id=events[0].task.id))
            assert state(found) == "TASK_STATE_COMPLETED"

    asyncio.run(ask())


def test_a_method_that_does_not_stream_can_be_streamed(agent: str) -> None:
    """Its changes come as they happen, and its result before its end. A failure says why."""

    async def ask() -> None:
        async with a2a_client(agent) as client:
            events = await sent(client, message_of("slow", {"seconds": 0.3}))
            assert state(events[-1].status_update) == "TASK_STATE_COMPLETED"
            assert part_values(events[-2].artifact_update.artifact) == ["done"]
            failed = await sent(client, message_of("fail", "no such city"))
            # A call that ended before its stream began is told as one task.
            last = failed[-1].status_update if failed[-1].HasField("status_update") else failed[-1].task
            assert (state(last), last.status.message.parts[0].text) == (
                "TASK_STATE_FAILED",
                "ValueError: no such city",
            )

    asyncio.run(ask())


def test_the_same_message_twice_is_one_task(world: EdgeWorld, agent: str) -> None:
    """Also if both arrive at once, and if it is streamed the second time: the effect happens once."""

    async def ask() -> None:
        city = f"city-{uuid4().hex}"
        request = message_of("forecast", {"city": city})
        async with a2a_client(agent, streaming=False) as client, a2a_client(agent) as streaming:
            tasks = await asyncio.gather(*(task_of(client, request) for _ in range(4)))
            events = await sent(streaming, request)
            assert {task.id for task in tasks} == {events[0].task.id}
            assert all(values(task) == [{"city": city, "degrees": 21}] for task in tasks)
        assert world.happened().count(f"forecast {city}") == 1

    asyncio.run(ask())


def test_a_stream_is_sent_once(world: EdgeWorld, agent: str) -> None:
    """The same message, streamed twice at once, is one task for both clients."""

    async def ask() -> None:
        request = message_of("write", "tides", {"words": 3, "pause": 0.1})
        async with a2a_client(agent) as client:
            both = await asyncio.gather(sent(client, request), sent(client, request))
            assert both[0][0].task.id == both[1][0].task.id
            for events in both:
                assert state(events[-1].status_update) == "TASK_STATE_COMPLETED"

    asyncio.run(ask())


def test_a_workflow_that_waits_takes_the_next_message(agent: str) -> None:
    """It is input-required and says for what it waits; a message with its task id is the signal."""

    async def ask() -> None:
        async with a2a_client(agent, streaming=False) as client:
            task = await task_of(client, message_of("review", {"document": "plan"}))
            assert state(task) == "TASK_STATE_INPUT_REQUIRED"
            assert "approval" in task.status.message.parts[0].text
            answered = await task_of(client, message_of(None, "yes", task_id=task.id))
            assert (answered.id, state(answered)) == (task.id, "TASK_STATE_COMPLETED")
            assert values(answered) == [{"document": "plan", "decision": "yes"}]
            with pytest.raises(UnsupportedOperationError, match="the task takes no message: it is completed"):
                await task_of(client, message_of(None, "yes", task_id=task.id))

    asyncio.run(ask())


def test_a_task_can_be_followed_and_cancelled(world: EdgeWorld, agent: str) -> None:
    """It is returned at once where the client wants that; a subscriber sees its end; an ended one is refused."""

    async def ask() -> None:
        async with a2a_client(agent) as client, a2a_client(agent, streaming=False) as plain:
            request = message_of("slow", {"seconds": 60})
            request.configuration.return_immediately = True
            task = await task_of(plain, request)
            assert state(task) in ("TASK_STATE_SUBMITTED", "TASK_STATE_WORKING")
            seen = []
            async with asyncio.timeout(30):
                async for event in client.subscribe(SubscribeToTaskRequest(id=task.id)):
                    seen.append(event)
                    if not any(state(each) == "TASK_STATE_WORKING" for each in (event.task, event.status_update)):
                        continue
                    cancelled = await plain.cancel_task(CancelTaskRequest(id=task.id))
                    assert state(cancelled) == "TASK_STATE_CANCELED"
            assert state(seen[-1].status_update) == "TASK_STATE_CANCELED"
            with pytest.raises(TaskNotCancelableError, match="ended already"):
                await plain.cancel_task(CancelTaskRequest(id=task.id))
            with pytest.raises(UnsupportedOperationError, match="get it instead"):
                await anext(aiter(client.subscribe(SubscribeToTaskRequest(id=task.id))))

    asyncio.run(ask())


def test_tasks_are_listed_by_pages(agent: str) -> None:
    """Those of a context, newest first, without their artifacts unless they are wanted."""

    async def ask() -> None:
        context = str(uuid4())
        async with a2a_client(agent, streaming=False) as client:
            made = [
                (await task_of(client, message_of("echo", str(number), context_id=context))).id
                for number in range(3)
            ]
            first = await client.list_tasks(ListTasksRequest(context_id=context, page_size=2))
            assert [each.id for each in first.tasks] == made[:0:-1]
            assert (first.total_size, [list(each.artifacts) for each in first.tasks]) == (3, [[], []])
            rest = await client.list_tasks(
                ListTasksRequest(
                    context_id=context, page_size=2, page_token=first.next_page_token, include_artifacts=True
                )
            )
            assert [(each.id, values(each)) for each in rest.tasks] == [(made[0], ["0"])]
            failed = await client.list_tasks(ListTasksRequest(context_id=context, status="TASK_STATE_FAILED"))
            assert not failed.tasks
            with pytest.raises(InvalidParamsError, match="nextPageToken"):
                await client.list_tasks(ListTasksRequest(page_token="nonsense"))  # noqa: S106 - no password

    asyncio.run(ask())


def test_bad_messages_get_the_protocols_errors(agent: str) -> None:
    """With our sentence, and nothing is sent."""

    async def ask() -> None:
        async with a2a_client(agent, streaming=False) as client:
            for kind, says, request in (
                (InvalidParamsError, "name a skill .* forecast", message_of(None, "hi")),
                (InvalidParamsError, "no skill 'nothing'", message_of("nothing", "hi")),
                (InvalidParamsError, "city", message_of("forecast", {"town": "Rome"})),
                (InvalidParamsError, "must be an object", message_of("forecast", [1])),
                (InvalidParamsError, "contextId must be 1 to 128", message_of("echo", "hi", context_id="a b")),
                (InvalidParamsError, "too large", message_of("echo", {"text": 2.0**60})),
                (TaskNotFoundError, "there is no task|no message", message_of(None, "x", task_id=str(uuid4()))),
            ):
                with pytest.raises(kind, match=says):
                    await task_of(client, request)
            file = message_of("echo", "hi")
            file.message.parts.add(url="http://10.0.0.1/secret")
            with pytest.raises(ContentTypeNotSupportedError, match="takes no files"):
                await task_of(client, file)
            with pytest.raises(TaskNotFoundError):
                await client.get_task(GetTaskRequest(id="not an id"))

    asyncio.run(ask())


def test_an_unknown_agent_is_refused(edge: str) -> None:
    """By both bindings, with the protocol's own error."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "ListTasks", "params": {"pageToken": "x"}}
    headers = {"A2A-Version": "1.0"}
    message = {"messageId": "1", "role": "ROLE_USER", "parts": [{"text": "hi"}]}
    answer = httpx.post(
        f"{edge}/a2a/nobody",
        json={**body, "method": "SendMessage", "params": {"message": message}},
        headers=headers,
    ).json()
    assert (answer["error"]["code"], "nobody" in answer["error"]["message"]) == (-32601, True)
    rest = httpx.post(f"{edge}/a2a/nobody/v1/message:send", json={"message": message}, headers=headers)
    assert (rest.status_code, "nobody" in rest.json()["error"]["message"]) == (404, True)


def test_a_body_that_is_not_utf_8_is_refused_before_any_protocol(agent: str) -> None:
    """By the edge itself, as problem details."""
    headers = {"A2A-Version": "1.0", "Content-Type": "application/json"}
    answer = httpx.post(agent, content=b"\xff\xfe", headers=headers)
    assert (answer.status_code, answer.json()["detail"]) == (400, "JSON must be encoded as UTF-8")


def test_a_body_that_is_no_text_is_the_clients_mistake(agent: str) -> None:
    """By both bindings, with our sentence; the log of the server has no traceback for it."""
    headers, body = (
        {"A2A-Version": "1.0", "Content-Type": "application/json"},
        b'{"message": {"parts": "\\ud800"}}',
    )
    rpc = httpx.post(agent, content=body, headers=headers).json()["error"]
    assert (rpc["code"], "surrogate" in rpc["message"]) == (-32700, True)
    rest = httpx.post(f"{agent}/v1/message:send", content=body, headers=headers)
    assert (rest.status_code, "surrogate" in rest.json()["error"]["message"]) == (400, True)


def test_a_client_that_goes_away_leaves_its_task(world: EdgeWorld, agent: str) -> None:
    """The stream of the worker goes on to its end, and the task can be asked for."""

    async def leave() -> str:
        async with a2a_client(agent) as client:
            async for event in client.send_message(message_of("write", "tides", {"words": 10, "pause": 0.05})):
                if event.HasField("artifact_update"):
                    return str(event.artifact_update.task_id)
        raise AssertionError("no part came")

    task_id = asyncio.run(leave())

    async def ended() -> str:
        async with a2a_client(agent) as client:
            return state(await client.get_task(GetTaskRequest(id=task_id)))

    until(lambda: asyncio.run(ended()) == "TASK_STATE_COMPLETED", "the end of the task")


def test_an_edge_that_stops_leaves_its_tasks(world: EdgeWorld) -> None:
    """A stream that runs when the edge is stopped ends with its client; the task goes on to its end."""

    async def begin(url: str) -> str:
        async with a2a_client(url) as client:
            async for event in client.send_message(message_of("write", "tides", {"words": 30, "pause": 0.1})):
                if event.HasField("artifact_update"):
                    return str(event.artifact_update.task_id)
        raise AssertionError("no part came")

    with a2a_edge(world.app) as url:
        task_id = asyncio.run(begin(f"{url}/a2a/{world.agent}"))

    until(lambda: world.trail.receipt(task_id).receipt.status in ("handled", "cancelled"), "the end of the task")
    assert world.trail.receipt(task_id).receipt.status == "handled"


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_goes_away_cancels_its_task_where_that_is_set(world: EdgeWorld, streaming: bool) -> None:
    """With cancel_when_gone the handler is stopped, for a stream and for a plain message."""
    with a2a_edge(world.app, cancel_when_gone=True) as url:
        request = message_of("write", "tides", {"words": 400, "pause": 0.05})

        async def leave() -> None:
            async with a2a_client(f"{url}/a2a/{world.agent}", streaming=streaming) as client:
                asking = asyncio.ensure_future(sent(client, request))
                await asyncio.wait([asking], timeout=1.0)
                asking.cancel()
                await asyncio.wait([asking])

        asyncio.run(leave())
        newest = world.trail.query(to_agent=world.agent, handler="write", limit=1).records[0].receipt.message_id
        until(lambda: world.trail.receipt(newest).receipt.status == "cancelled", "the end of the task")


def test_fifty_streams_at_once(agent: str) -> None:
    """Each client gets all parts of its own stream."""

    async def ask() -> None:
        async with a2a_client(agent) as client:
            texts = [f"t{number}" for number in range(50)]
            all_events = await asyncio.gather(*(sent(client, message_of("write", t, {"words": 3})) for t in texts))
            for text, events in zip(texts, all_events, strict=True):
                got = [
                    v
                    for e in events
                    if e.HasField("artifact_update")
                    for v in part_values(e.artifact_update.artifact)
                ]
                assert got == [f"{text}-{number} " for number in range(3)]
                assert state(events[-1].status_update) == "TASK_STATE_COMPLETED"

    asyncio.run(ask())


def test_principals_see_their_own(world: EdgeWorld) -> None:
    """The card is open; the extended one shows what the principal may call; and it sees its own tasks only."""
    one, hash_one = new_key()
    two, hash_two = new_key()
    principals = parse_principals(
        {
            "one": {"from_agent": "one", "keys": [hash_one], "may_call": [f"{world.agent}.echo"]},
            "two": {"from_agent": "two", "keys": [hash_two], "may_call": ["*"]},
        }
    )
    with a2a_edge(world.app, authentication=ApiKeys(principals), agents=(world.agent,)) as url:
        card = httpx.get(url + CARD).json()  # the only agent's
        assert card["name"] == world.agent
        assert card["securitySchemes"]["apiKey"]["apiKeySecurityScheme"]["name"] == "X-API-Key"
        assert httpx.post(f"{url}/a2a/{world.agent}", json={}).status_code == 401

        async def ask() -> None:
            base = f"{url}/a2a/{world.agent}"
            async with (
                a2a_client(base, streaming=False, headers={"X-API-Key": one}) as first,
                a2a_client(base, streaming=False, headers={"X-API-Key": two}) as second,
            ):
                extended = await first.get_extended_agent_card(GetExtendedAgentCardRequest())
                assert [each.id for each in extended.skills] == ["echo"]
                task = await task_of(first, message_of(None, "secret"))  # its only skill
                assert values(task) == ["secret"]
                with pytest.raises(TaskNotFoundError):
                    await second.get_task(GetTaskRequest(id=task.id))
                with pytest.raises(InvalidParamsError, match="the skills are echo"):
                    await task_of(first, message_of("forecast", {"city": "Rome"}))
                assert not (await second.list_tasks(ListTasksRequest())).tasks

        asyncio.run(ask())


class Receiver:
    """Receives push notifications; it refuses the first ones of a state."""

    def __init__(self, refused: str, refusals: int) -> None:
        self.refused, self.refusals = refused, refusals
        self.got: list[tuple[str, str, str]] = []

    async def __call__(self, request: Request) -> Response:
        """Take a notification."""
        task = (await request.json())["task"]
        if self.refusals and task["status"]["state"] == self.refused:
            self.refusals -= 1
            return Response(status_code=503)
        token = request.headers.get("X-A2A-Notification-Token", "")
        self.got.append((task["id"], task["status"]["state"], token))
        return Response(status_code=204)


def test_push_notifications_arrive_although_the_receiver_refuses_at_first(world: EdgeWorld, agent: str) -> None:
    """The end of the task reaches the URL, with the client's token; the settings can be read and deleted."""
    receiver = Receiver("TASK_STATE_COMPLETED", refusals=1)

    async def ask(url: str) -> str:
        async with a2a_client(agent, streaming=False) as client:
            request = message_of("review", {"document": "plan"})
            config = TaskPushNotificationConfig(url=f"{url}/notify", token=TOKEN, id="mine")
            request.configuration.task_push_notification_config.CopyFrom(config)
            task = await task_of(client, request)
            found = await client.list_task_push_notification_configs(
                ListTaskPushNotificationConfigsRequest(task_id=task.id)
            )
            assert [(each.id, each.token) for each in found.configs] == [("mine", TOKEN)]
            other = TaskPushNotificationConfig(url=f"{url}/other", task_id=task.id)
            made = await client.create_task_push_notification_config(other)
            await client.delete_task_push_notification_config(
                DeleteTaskPushNotificationConfigRequest(task_id=task.id, id=made.id)
            )
            await task_of(client, message_of(None, "yes", task_id=task.id))
            return str(task.id)

    app = Starlette(routes=[Route("/notify", receiver.__call__, methods=["POST"])])
    with served(lambda _: app) as url:
        task_id = asyncio.run(ask(url))
        until(lambda: (task_id, "TASK_STATE_COMPLETED", TOKEN) in receiver.got, "the last notification")


def test_push_notifications_reach_no_inner_network(world: EdgeWorld) -> None:
    """The URL of an inner address is refused before the message is sent."""
    with a2a_edge(world.app, allowed_networks=()) as url:

        async def ask() -> None:
            async with a2a_client(f"{url}/a2a/{world.agent}", streaming=False) as client:
                request = message_of("echo", "hi")
                config = TaskPushNotificationConfig(url="http://127.0.0.1:1/")
                request.configuration.task_push_notification_config.CopyFrom(config)
                with pytest.raises(A2AError, match="an address of an inner network"):
                    await task_of(client, request)

        asyncio.run(ask())
