"""Contracts of methods: made of type hints, checked, compared, and written as AsyncAPI."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from waooaw_celery.agents import AgentInfo, AgentStatus, Capability, Health
from waooaw_celery.discovery.agent_info import WorkerInfo
from waooaw_celery.discovery.contracts.asyncapi import asyncapi_document
from waooaw_celery.discovery.contracts.check import ArgumentCheck
from waooaw_celery.discovery.contracts.compare import breaking_changes
from waooaw_celery.discovery.contracts.contract import method_contract
from waooaw_celery.discovery.contracts.documents import contracts_document
from waooaw_celery.discovery.declaration import make_profile
from waooaw_celery.discovery.health.state import WorkerFacts
from waooaw_celery.errors import InvalidArguments, InvalidMessage
from waooaw_celery.messages.topics.plain_json import as_json, unchanged
from waooaw_celery.messages.topics.schemas import TopicSchema


class Colour(Enum):
    """A colour."""

    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    """A point."""

    x: int
    y: float = 0.0


class Options(TypedDict, total=False):
    """Options of a call."""

    depth: int


class Node(BaseModel):
    """A tree."""

    name: str = Field(min_length=1)
    children: list[Node] = []


def everything(
    text: str,
    point: Point,
    tree: Node | None = None,
    colour: Colour = Colour.RED,
    mode: Literal["fast", "good"] = "fast",
    when: datetime | None = None,
    day: date | None = None,
    price: Decimal | None = None,
    raw: bytes = b"",
    options: Options | None = None,
    anything: Any = None,
    untyped=None,  # type: ignore[no-untyped-def]
) -> dict[str, list[Point]]:
    """Take everything.

    More about it.
    """
    raise NotImplementedError


GOOD: dict[str, Any] = {"text": "a", "point": {"x": 1}}


def check_of(function: Any, **options: Any) -> ArgumentCheck:
    """Return the check of a function's arguments."""
    contract = method_contract(function, **options)
    assert contract is not None
    return ArgumentCheck("worker-1.method", contract["parameters"])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"tree": {"name": "a", "children": [{"name": "b", "children": []}]}},
        {"tree": None, "colour": "blue", "mode": "good"},
        {"when": datetime.now(UTC), "day": date(2026, 1, 1), "price": Decimal("1.5"), "raw": b"\x00"},
        {"when": "2026-01-01T00:00:00+00:00", "price": 2},
        {"options": {}, "anything": [uuid4()], "untyped": {"any": "thing"}},
        {"point": {"x": 1, "y": 2}},
    ],
)
def test_arguments_of_the_right_types_are_accepted(arguments: dict[str, Any]) -> None:
    """Dates, Decimals and bytes count as what they are in JSON."""
    check_of(everything).check({**GOOD, **arguments})


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"text": 5}, r"\$\.text: 5 is not of type 'string'"),
        ({"point": {"x": "1"}}, r"\$\.point\.x"),
        ({"point": {}}, r"\$\.point: 'x' is a required property"),
        ({"tree": {"name": "a", "children": [{"name": ""}]}}, r"\$\.tree"),
        ({"colour": "green"}, r"\$\.colour"),
        ({"mode": "slow"}, r"\$\.mode"),
        ({"options": {"depth": True}}, r"\$\.options"),
        ({"point": None}, r"\$\.point"),
        ({"unknown": 1}, r"unknown"),
    ],
)
def test_the_path_of_a_wrong_argument_is_named(arguments: dict[str, Any], path: str) -> None:
    """The error begins with the method, so that its caller knows whose arguments are wrong."""
    with pytest.raises(InvalidArguments, match=path) as caught:
        check_of(everything).check({**GOOD, **arguments})
    assert str(caught.value).startswith("worker-1.method takes (text, point, tree=…, ")


def test_a_contract_shows_no_default_and_describes_the_method() -> None:
    """A default may be a secret."""
    contract = method_contract(everything)
    assert contract is not None
    assert "fast" in json.dumps(contract)
    assert '"default"' not in json.dumps(contract)
    assert contract["description"] == "Take everything."
    assert contract["parameters"]["required"] == ["text", "point"]
    assert contract["result"]["additionalProperties"]["items"] == {"$ref": "#/$defs/Point"}


def test_callables_of_every_kind_have_a_contract() -> None:
    """Bound tasks, partials, objects, generators, and functions with ``**kwargs``."""

    def bound(self: Any, number: int) -> None: ...

    def generator(count: int) -> Iterator[str]:
        yield ""

    async def parts() -> AsyncIterator[Point]:
        yield Point(1)

    def open_(number: int, *rest: int, **others: str) -> None: ...

    class Called:
        def __call__(self, number: int) -> str:
            return ""

    check_of(bound, bind=True).check({"number": 1})
    check_of(partial(everything, text="a")).check({"point": {"x": 1}})
    check_of(Called()).check({"number": 1})
    check_of(open_).check({"number": 1, "more": "a"})
    with pytest.raises(InvalidArguments, match=r"\$\.more"):
        check_of(open_).check({"number": 1, "more": 2})
    found = method_contract(generator)
    assert found is not None
    assert (found["result"], found["part"]) == ({}, {"type": "string"})
    found = method_contract(parts)
    assert found is not None
    assert found["part"]["properties"]["x"] == {"type": "integer"}


def test_hints_that_json_schema_cannot_express_accept_everything() -> None:
    """A class of one's own, a name that only a type checker knows, and a lambda without hints."""

    class Own: ...

    def own(value: Own, other: NotImported) -> Own:  # type: ignore[name-defined]  # noqa: F821
        raise NotImplementedError

    check_of(own).check({"value": {"any": 1}, "other": 2})
    check_of(lambda value: value).check({"value": object()})
    with pytest.raises(InvalidArguments, match="missing a required argument: 'other'"):
        check_of(own).check({"value": 1})


def test_two_types_of_one_name_are_not_mixed_up() -> None:
    """The later one accepts everything, rather than being checked against the other."""

    def first() -> Any:
        class Same(BaseModel):
            a: int
            more: list[Same] = []

        return Same

    def second() -> Any:
        class Same(BaseModel):
            b: str
            more: list[Same] = []

        return Same

    def method(one: Any, two: Any) -> None: ...

    method.__annotations__.update(one=first(), two=second())
    check_of(method).check({"one": {"a": 1}, "two": {"b": "x"}})


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "a", "red", "fast", "2026-01-01"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["x", "y", "name", "children", "depth"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("text", "point", "tree", "colour", "mode", "options", "anything", "price", "more"), _VALUES
        ),
    )
)
def test_the_fast_check_accepts_only_what_jsonschema_accepts(arguments: dict[str, Any]) -> None:
    """What it does not accept, jsonschema decides: so both together are jsonschema."""
    contract = method_contract(everything)
    assert contract is not None
    schema = contract["parameters"]
    valid = jsonschema.Draft202012Validator(schema).is_valid(as_json(arguments, unchanged))
    try:
        ArgumentCheck("a.b", schema).check(arguments)
    except InvalidArguments:
        assert not valid
    else:
        assert valid


# --- comparison


def document(**methods: Any) -> dict[str, Any]:
    """Return a document with one agent that has these methods."""
    contracts = {name: method_contract(function) for name, function in methods.items()}
    return contracts_document([info("shop", contracts, [Capability(name="sell", version="2.1", method="sell")])])


def info(name: str, contracts: dict[str, Any], capabilities: list[Capability]) -> AgentInfo:
    """Return an agent with one worker."""
    profile = make_profile(version="2.1", capabilities=capabilities, contracts=contracts, subscribes=["order.*"])
    facts = WorkerFacts(started_at=datetime.now(UTC), ttl=15.0, heartbeat=5.0, health=Health.HEALTHY)
    worker = WorkerInfo(
        node=f"{name}@host",
        health=Health.HEALTHY,
        reasons=(),
        last_heartbeat=None,
        handlers=tuple(contracts),
        profile=profile,
        facts=facts,
        draining=False,
    )
    return AgentInfo(
        name=name,
        status=AgentStatus.ONLINE,
        health=Health.HEALTHY,
        reasons=(),
        capabilities=profile.capabilities,
        tags=(),
        metadata={},
        weight=1.0,
        max_in_flight=None,
        handlers=(*sorted(contracts), "command", "event.changed"),
        workers=(worker,),
        running=0,
        last_seen=None,
        order=None,
    )


def old(
    item: str, count: int = 1, mode: Literal["a", "b"] = "a", point: Point | None = None
) -> dict[str, int]: ...  # type: ignore[empty-body]


def wider(
    item: str | int,
    count: float = 1,
    mode: Literal["a", "b", "c"] = "a",
    point: Point | None = None,
    more: str = "",
) -> dict[str, int]: ...  # type: ignore[empty-body]


def required(item: str, colour: str, count: int = 1, mode: str = "a", point: Any = None) -> dict[str, int]: ...  # type: ignore[empty-body]


def narrower(item: str, count: str = "", mode: Literal["a"] = "a", point: None = None) -> dict[str, int]: ...  # type: ignore[empty-body]


def fewer(item: str, mode: str = "a", point: Any = None) -> dict[str, int]: ...  # type: ignore[empty-body]


def other_result(item: str, count: int = 1, mode: str = "a", point: Any = None) -> dict[str, str]: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("function", "breaks"),
    [
        (old, []),
        (wider, []),
        (required, ["shop.sell parameters.colour: it is required now"]),
        (
            narrower,
            [
                "shop.sell parameters.count: integer is not accepted any more, only string",
                "shop.sell parameters.mode: 'b' is not accepted any more",
                "shop.sell parameters.point: object is not accepted any more, only null",
            ],
        ),
        (fewer, ["shop.sell parameters.count: it is gone"]),
        (other_result, ["shop.sell result.*: it may be string now, which callers do not expect"]),
    ],
)
def test_changes_that_break_callers_are_found(function: Any, breaks: list[str]) -> None:
    """What accepts more, and returns what callers know, breaks nothing."""
    found = sorted(map(str, breaking_changes(document(sell=old), document(sell=function))))
    assert found == breaks


def test_what_is_gone_breaks_callers() -> None:
    """An agent, a handler, a capability and a version of it."""
    before, after = document(sell=old, buy=old), document(sell=old)
    assert [str(each) for each in breaking_changes(before, after)] == ["shop.buy: the handler is gone"]
    after["agents"]["shop"]["capabilities"][0]["version"] = "2.2"
    assert len(breaking_changes(before, after)) == 1
    after["agents"]["shop"]["capabilities"][0]["version"] = "3.0"
    assert "version 2.1 is gone, and 3.0 does not replace it" in str(breaking_changes(before, after)[1])
    after["agents"] = {}
    assert [str(each) for each in breaking_changes(before, after)] == ["shop: the agent is gone"]
    with pytest.raises(InvalidMessage, match="no document of contracts"):
        breaking_changes({"openapi": "3.1"}, after)


def test_the_asyncapi_document_is_valid_by_the_official_schema() -> None:
    """Its references lead to what it defines, and recursive types are components."""
    official = json.loads((Path(__file__).parents[1] / "data" / "asyncapi-3.0.0.json").read_text())

    def grow(tree: Node, point: Point) -> Iterator[Node]:
        yield tree

    contracts = {"everything": method_contract(everything), "grow": method_contract(grow)}
    agents = [
        info("shop", contracts, [Capability(name="sell", version="1", method="grow")]),
        info("other", {}, []),
    ]
    schema = {"type": "object", "$defs": {"N": {"type": "integer"}}, "properties": {"n": {"$ref": "#/$defs/N"}}}
    made = json.loads(
        json.dumps(asyncapi_document(agents, [TopicSchema(topic="order.paid", version="1", schema=schema)]))
    )
    jsonschema.Draft7Validator(official).validate(made)
    references = set()

    def collect(part: Any) -> None:
        if isinstance(part, dict):
            references.add(part.get("$ref"))
            for each in part.values():
                collect(each)
        elif isinstance(part, list):
            for each in part:
                collect(each)

    collect(made)
    for reference in references - {None}:
        found = made
        for step in reference.removeprefix("#/").split("/"):
            found = found[step.replace("~1", "/").replace("~0", "~")]
    assert made["operations"]["shop.grow"]["reply"]["channel"] == {"$ref": "#/channels/answers.shop.grow"}
    assert made["channels"]["topic.order.paid"]["address"] == "order.paid"
    assert "shop.command" in made["operations"]
    del made["asyncapi"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(official).validate(made)
