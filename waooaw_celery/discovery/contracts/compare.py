"""Compares contracts: which changes break callers that were written for the old ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from packaging.version import Version

from waooaw_celery.discovery.contracts.contract import PARAMETERS, PART, RESULT
from waooaw_celery.errors import InvalidMessage

#: Bounds that a larger value makes narrower, and those that a smaller one does.
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
#: Keywords that are narrower whenever they are new or different.
_OTHERS = ("pattern", "format", "multipleOf", "uniqueItems", "patternProperties", "propertyNames", "not", "oneOf")
_ALL_TYPES = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})
_MAX_DEPTH = 50


class Break(NamedTuple):
    """A change that breaks callers.

    Attributes:
        where: the agent, the method and the part of the contract.
        what: what has changed.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def breaking_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Break]:
    """Return the changes between two documents that break callers of the old one.

    New agents, methods, capabilities and optional parameters break nothing. Neither does a parameter that accepts
    more than before, or a result that has more properties.

    Args:
        old: a document of ``waooaw contracts --json``.
        new: a later one.

    Raises:
        InvalidMessage: one of them is no such document.
    """
    agents = [_agents(each) for each in (old, new)]
    found: list[Break] = []
    for name, before in agents[0].items():
        after = agents[1].get(name)
        if after is None:
            found.append(Break(name, "the agent is gone"))
            continue
        for handler in before.get("handlers", ()):
            if handler not in after.get("handlers", ()):
                found.append(Break(f"{name}.{handler}", "the handler is gone"))
        found += _lost_capabilities(name, before.get("capabilities", ()), after.get("capabilities", ()))
        for method, contract in before.get("methods", {}).items():
            later = after.get("methods", {}).get(method)
            if later is not None:
                found += _of_method(f"{name}.{method}", contract, later)
    return found


def _agents(document: Any) -> dict[str, Any]:
    agents = document.get("agents") if isinstance(document, Mapping) else None
    if not isinstance(agents, dict) or not all(isinstance(each, dict) for each in agents.values()):
        raise InvalidMessage("this is no document of contracts: make one with `waooaw contracts --json`")
    return agents


def _lost_capabilities(agent: str, old: Any, new: Any) -> Iterator[Break]:
    for before in old:
        where, name, version = f"{agent} capability {before['name']}", before["name"], before["version"]
        same = [each for each in new if each["name"] == name]
        if not same:
            yield Break(where, "the capability is gone")
        elif version is not None and not any(
            each["version"] is not None and _serves(version, each["version"]) for each in same
        ):
            versions = ", ".join(str(each["version"]) for each in same)
            yield Break(where, f"version {version} is gone, and {versions} does not replace it")


def _serves(old: str, new: str) -> bool:
    """Return whether a version serves callers of an older one: the same major number, and not lower."""
    return Version(new).major == Version(old).major and Version(new) >= Version(old)


def _of_method(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Break]:
    yield from _Narrowing(old[PARAMETERS], new[PARAMETERS]).breaks(f"{where} parameters")
    for part in (RESULT, PART):
        if part in old:
            if part not in new:
                yield Break(f"{where} {part}", "the answer does not come in parts any more")
            else:  # what the new one returns, the old callers must understand
                yield from _Narrowing(new[part], old[part], is_result=True).breaks(f"{where} {part}")


class _Narrowing:
    """Finds values that one schema accepts and another one refuses.

    Args:
        given: the schema of the values: of the old callers' arguments, or of the new results.
        accepting: the schema that must accept them.
        is_result: whether they are results: then readers ignore properties that they do not know.
    """

    def __init__(self, given: Any, accepting: Any, *, is_result: bool = False) -> None:
        self._given, self._accepting, self._is_result = given, accepting, is_result
        self._seen: set[tuple[int, int]] = set()

    def breaks(self, where: str) -> list[Break]:
        """Return what breaks."""
        return list(self._compare(self._given, self._accepting, where, 0))

    def _compare(self, given: Any, accepting: Any, where: str, depth: int) -> Iterator[Break]:
        given, accepting = _resolved(given, self._given), _resolved(accepting, self._accepting)
        if accepting in (True, {}) or given is False or depth > _MAX_DEPTH:
            return
        if accepting is False:
            yield Break(where, "no value is accepted any more")
            return
        if (id(given), id(accepting)) in self._seen:
            return
        self._seen.add((id(given), id(accepting)))
        given = {} if given is True else given
        if "anyOf" in given:
            for alternative in given["anyOf"]:
                yield from self._compare(alternative, accepting, where, depth + 1)
            return
        if "anyOf" in accepting:
            found = [list(self._compare(given, each, where, depth + 1)) for each in accepting["anyOf"]]
            if all(found):
                yield from min(found, key=len)
            return
        yield from self._types(given, accepting, where)
        yield from self._values(given, accepting, where)
        yield from self._bounds(given, accepting, where)
        if "object" in _types(given) and "object" in _types(accepting):
            yield from self._properties(given, accepting, where, depth)
        if "array" in _types(given) and "array" in _types(accepting):
            yield from self._compare(given.get("items", {}), accepting.get("items", {}), f"{where}[]", depth + 1)

    def _types(self, given: Any, accepting: Any, where: str) -> Iterator[Break]:
        accepted = _types(accepting)
        if lost := sorted(_types(given) - accepted - ({"integer"} if "number" in accepted else set())):
            if self._is_result:
                yield Break(where, f"it may be {', '.join(lost)} now, which callers do not expect")
            else:
                yield Break(
                    where, f"{', '.join(lost)} is not accepted any more, only {', '.join(sorted(accepted))}"
                )

    def _values(self, given: Any, accepting: Any, where: str) -> Iterator[Break]:
        allowed = _enumerated(accepting)
        if allowed is None:
            return
        values = _enumerated(given)
        if values is None:
            yield Break(
                where, f"only {_listed(allowed)} " + ("were expected" if self._is_result else "are accepted")
            )
        elif lost := [each for each in values if each not in allowed]:
            end = "may be returned now" if self._is_result else "is not accepted any more"
            yield Break(where, f"{_listed(lost)} {end}")

    def _bounds(self, given: Any, accepting: Any, where: str) -> Iterator[Break]:
        for name in (*_LOWER, *_UPPER, *_OTHERS):
            limit, before = accepting.get(name), given.get(name)
            if limit is None or limit == before:
                continue
            if before is not None and ((name in _LOWER and limit < before) or (name in _UPPER and limit > before)):
                continue
            was = "nothing" if before is None else repr(before)
            yield Break(where, f"{name} is {limit!r:.80} for what had {was:.80}")

    def _properties(self, given: Any, accepting: Any, where: str, depth: int) -> Iterator[Break]:
        had, has = given.get("properties", {}), accepting.get("properties", {})
        for name in accepting.get("required", ()):
            if name not in given.get("required", ()):
                what = "it may be missing now" if self._is_result else "it is required now"
                yield Break(f"{where}.{name}", what)
        others = accepting.get("additionalProperties", True)
        for name, schema in had.items():
            if name in has:
                yield from self._compare(schema, has[name], f"{where}.{name}", depth + 1)
            elif others is False:
                if not self._is_result:
                    yield Break(f"{where}.{name}", "it is gone")
            else:
                yield from self._compare(schema, others, f"{where}.{name}", depth + 1)
        extra = given.get("additionalProperties", True)
        if isinstance(others, Mapping) and extra is not False:
            yield from self._compare(extra, others, f"{where}.*", depth + 1)
        if not self._is_result and others is False and given.get("additionalProperties", True) is not False:
            yield Break(where, "other names are not accepted any more")


def _resolved(schema: Any, root: Any) -> Any:
    while isinstance(schema, Mapping) and "$ref" in schema:
        name = str(schema["$ref"]).removeprefix("#/$defs/")
        schema = root.get("$defs", {}).get(name, {})
    return schema


def _types(schema: Mapping[str, Any]) -> frozenset[str]:
    found = schema.get("type")
    if found is None:
        return _ALL_TYPES
    types = frozenset([found] if isinstance(found, str) else found)
    return types | {"integer"} if "number" in types else types


def _enumerated(schema: Mapping[str, Any]) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _listed(values: list[Any]) -> str:
    return ", ".join(repr(each) for each in values[:5]) + (", …" if len(values) > 5 else "")
