"""A violation of a schema tells everything that is wrong with a payload, within bounds."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from waooaw_celery.agents import SchemaProblem, SchemaViolation
from waooaw_celery.messages.topics.schemas import SchemaRegistry

ORDER: dict[str, Any] = {
    "required": ["id", "items"],
    "properties": {
        "total": {"type": "number", "minimum": 0},
        "items": {"items": {"required": ["sku"], "properties": {"count": {"type": "integer"}}}},
        "to": {"anyOf": [{"required": ["email"]}, {"properties": {"phone": {"pattern": "^[0-9]+$"}}}]},
    },
}


def violation(schema: dict[str, Any], payload: Any) -> SchemaViolation:
    made = SchemaRegistry().register("order.paid", schema)
    with pytest.raises(SchemaViolation) as broken:
        made.validate(payload)
    return broken.value


def test_all_problems_are_told_with_their_paths() -> None:
    """The most relevant one is first, and is what ``path`` and ``problem`` say."""
    error = violation(ORDER, {"total": -1, "items": [{"sku": "a"}, {"count": "x"}], "to": {"phone": "no"}})
    assert set(error.problems) == {
        SchemaProblem("$", "'id' is a required property"),
        SchemaProblem("$.total", "-1 is less than the minimum of 0"),
        SchemaProblem("$.items[1]", "'sku' is a required property"),
        SchemaProblem("$.items[1].count", "'x' is not of type 'integer'"),
        SchemaProblem("$.to.phone", "'no' does not match '^[0-9]+$'"),
    }
    assert error.problems[0] == (error.path, error.problem) == ("$", "'id' is a required property")
    assert error.more == 0
    for path, problem in error.problems:
        assert f"at {path}: {problem}" in str(error)


def test_the_number_and_the_length_of_problems_are_bounded() -> None:
    """A payload with thousands of long errors makes a short error, which says that there are more."""
    schema = {"additionalProperties": {"type": "integer"}}
    error = violation(schema, {f"{number:04}{'p' * 1000}": "v" * 1000 for number in range(3000)})
    assert (len(error.problems), error.more) == (20, 80)
    assert all(len(path) <= 500 and len(problem) <= 500 for path, problem in error.problems)
    assert str(error).endswith("; and 80 more")
    assert len(str(error)) < 25_000


def test_a_violation_with_several_problems_can_be_pickled() -> None:
    """It keeps its problems on the way from a process of the pool to the worker."""
    error = violation(ORDER, {"total": -1})
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (str(again), again.problems, again.path) == (str(error), error.problems, error.path)
