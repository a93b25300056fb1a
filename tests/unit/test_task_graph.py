"""Graphs of tasks: their checks, their orders, their forms."""

from __future__ import annotations

import pytest

from waooaw_celery.agents import RetryPolicy, TaskGraph, result_of
from waooaw_celery.errors import InvalidMessage
from waooaw_celery.workflows.graph.references import resolved
from waooaw_celery.workflows.graph.task_graph import OnFailure, TaskPriority


def diamond() -> TaskGraph:
    """Return four tasks: one, two that depend on it, and one that depends on both."""
    graph = TaskGraph("diamond")
    graph.add_task("fetch", "crawler", "fetch", {"url": "x"}, priority="critical")
    graph.add_task(
        "read",
        "ocr",
        "read",
        {"page": result_of("fetch", "pages", 0)},
        depends_on=["fetch"],
        retry=RetryPolicy.fixed(3, 2),
    )
    graph.add_task("draw", "artist", "draw", depends_on=["fetch"], when={"fetch.pages": {"exists": True}})
    graph.add_task(
        "bind",
        "binder",
        "bind",
        {"parts": [result_of("read"), result_of("draw")]},
        depends_on=["read", "draw"],
        compensation=("binder", "discard", {"book": result_of("bind")}),
    )
    return graph


def test_the_orders_follow_the_dependencies() -> None:
    """Batches run at the same time; the critical path is the longest way."""
    graph = diamond()
    graph.validate()
    assert graph.topological_order() == ["fetch", "read", "draw", "bind"]
    assert graph.batches() == [["fetch"], ["read", "draw"], ["bind"]]
    assert graph.critical_path() == ["fetch", "read", "bind"]
    assert graph.critical_path({"draw": 5}) == ["fetch", "draw", "bind"]
    assert TaskGraph().critical_path() == []


def test_the_json_form_makes_an_equal_graph() -> None:
    """It has all that was given."""
    graph = diamond()
    graph.on_failure = OnFailure.CONTINUE
    again = TaskGraph.from_json(graph.to_json())
    assert again == graph
    assert again.task("fetch").priority is TaskPriority.CRITICAL
    assert again.task("fetch").priority.of_message == "URGENT"


def test_a_diagram_has_all_tasks_and_edges() -> None:
    """And its texts cannot break it."""
    graph = diamond()
    graph.add_task('say "<b>"', "artist", "draw")
    shown = graph.to_mermaid()
    assert shown.count("-->") == 4
    assert "&quot;&lt;b&gt;&quot;" in shown


def test_a_cycle_is_named() -> None:
    """By each order and by validate."""
    graph = TaskGraph()
    graph.add_task("a", "x", "m", depends_on=["c"])
    graph.add_task("b", "x", "m", depends_on=["a"])
    graph.add_task("c", "x", "m", depends_on=["b"])
    for check in (graph.validate, graph.batches, graph.critical_path, graph.topological_order):
        with pytest.raises(InvalidMessage, match="a -> c -> b -> a"):
            check()


def test_what_is_missing_is_named() -> None:
    """A dependency, and the result of a task that does not come before."""
    graph = TaskGraph()
    graph.add_task("a", "x", "m", depends_on=["nowhere"])
    with pytest.raises(InvalidMessage, match="'a' depends on 'nowhere'"):
        graph.validate()
    graph = TaskGraph()
    graph.add_task("a", "x", "m")
    graph.add_task("b", "x", "m", {"value": result_of("a")})
    with pytest.raises(InvalidMessage, match="'b' uses the result of 'a', and does not depend on it"):
        graph.validate()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"name": "a/b"}, "name of a task"),
        ({"name": "first"}, "already"),
        ({"agent": "No Agent"}, "agent of task"),
        ({"method": "no method"}, "no valid method"),
        ({"depends_on": "first"}, "list of names"),
        ({"priority": "soon"}, "priority must be"),
        ({"retry": -1}, "retry of a task"),
        ({"retry": RetryPolicy(on=(ValueError,))}, "cannot name errors"),
        ({"timeout": "soon"}, "timeout"),
        ({"compensation": "undo"}, "compensation is"),
        ({"when": {"a": {"like": 1}}}, "like"),
        ({"payload": {"a": object()}}, "payload"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, object], problem: str) -> None:
    """The task is not added."""
    graph = TaskGraph()
    graph.add_task("first", "x", "m")
    given: dict[str, object] = {"name": "second", "agent": "x", "method": "m"}
    with pytest.raises(InvalidMessage, match=problem):
        graph.add_task(**{**given, **arguments})  # type: ignore[arg-type]  # that is the test
    assert len(graph.tasks) == 1


def test_references_are_replaced_by_results() -> None:
    """Also within lists and mappings. A missing part is named."""
    payload = {"all": result_of("a"), "deep": [{"one": result_of("a", "b", 1)}], "plain": 1}
    assert resolved(payload, {"a": {"b": [1, 2]}}) == {"all": {"b": [1, 2]}, "deep": [{"one": 2}], "plain": 1}
    with pytest.raises(InvalidMessage, match="'a' has no part"):
        resolved(result_of("a", "c"), {"a": {"b": 1}})


def test_a_condition_is_about_an_earlier_task() -> None:
    """Otherwise it would depend on which task ends first, and differ in a replay."""
    graph = TaskGraph()
    graph.add_task("a", "x", "m")
    graph.add_task("b", "x", "m", when={"a.size": {"gte": 1}})
    with pytest.raises(InvalidMessage, match=r"condition of task 'b'.*depends_on"):
        graph.validate()


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_chain_of_tasks_may_be_long(is_reversed: bool) -> None:
    """Longer than Python's stack, in any order."""
    graph, numbers = TaskGraph(), list(range(2000))
    for number in reversed(numbers) if is_reversed else numbers:
        graph.add_task(f"t{number}", "x", "m", depends_on=[f"t{number - 1}"] if number else [])
    graph.validate()
    names = [f"t{number}" for number in numbers]
    assert graph.topological_order() == graph.critical_path() == names
    assert graph.ancestors("t1999") == set(names[:-1])
