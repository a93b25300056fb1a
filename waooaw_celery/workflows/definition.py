"""A workflow's function, as it was registered: its name, its version, and how its input becomes its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from typing import Any, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError

from waooaw_celery.errors import ConfigurationError, InvalidArguments
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.validation import JSON


@dataclass(frozen=True)
class WorkflowDefinition:
    """A function of an agent that runs as a workflow.

    Attributes:
        target: the agent, and the name of the function.
        function: the function: ``async def f(flow, ...)``, or a plain ``def``.
        version: its version; a workflow goes on with the version that it began with.
        publish_event: publishes an event, as ``EventBus.publish`` does.
    """

    target: HandlerName
    function: Callable[..., Any]
    version: int = 1
    publish_event: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if type(self.version) is not int or not 1 <= self.version < 2**31:
            raise ConfigurationError(
                f"the version of {self.target} must be a whole number from 1, not {self.version!r}"
            )
        if inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function):
            raise ConfigurationError(f"{self.target} is a generator: a workflow must be a def or an async def")
        try:
            parameters = list(inspect.signature(self.function).parameters.values())
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{self.target} cannot be a workflow: {error}") from None
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if not parameters or parameters[0].kind not in positional:
            raise ConfigurationError(f"{self.target} must take the flow as its first argument: def f(flow, ...)")

    @property
    def is_async(self) -> bool:
        """Whether the function is an ``async def``."""
        return inspect.iscoroutinefunction(self.function)

    @cached_property
    def _signature(self) -> inspect.Signature:
        signature = inspect.signature(self.function)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    @cached_property
    def _builders(self) -> dict[str, TypeAdapter[Any]]:
        """What builds the arguments whose parameters are dataclasses or pydantic models."""
        hints = get_type_hints(self.function)
        names: dict[str, Any] = {name: hints.get(name) for name in self._signature.parameters}
        return {name: TypeAdapter(hint) for name, hint in names.items() if _is_built(hint)}

    def check_input(self, given: Mapping[str, JSON]) -> None:
        """Check that the function can be called with an input.

        Raises:
            InvalidArguments: it cannot; the error names the argument.
        """
        try:
            self._signature.bind(**given)
        except TypeError as error:
            raise InvalidArguments(f"{self.target} cannot be called with this input: {error}") from None

    def arguments(self, given: Mapping[str, JSON]) -> dict[str, Any]:
        """Return the function's arguments; those of dataclasses and pydantic models are built.

        Raises:
            InvalidArguments: the function cannot be called with the input.
        """
        self.check_input(given)
        found = dict(given)
        for name, builder in self._builders.items():
            if name in found:
                try:
                    found[name] = builder.validate_python(found[name])
                except ValidationError as error:
                    raise InvalidArguments(
                        f"{self.target} cannot be called with this input: {name}: {error}"
                    ) from None
        return found


def _is_built(hint: Any) -> bool:
    return isinstance(hint, type) and (is_dataclass(hint) or issubclass(hint, BaseModel))


#: The workflows of an application: each name with the versions of its function.
Definitions = dict[str, dict[int, WorkflowDefinition]]


def add_definition(definitions: Definitions, definition: WorkflowDefinition) -> None:
    """Add the function of a workflow.

    Raises:
        ConfigurationError: there is a function of this name and version.
    """
    versions = definitions.setdefault(str(definition.target), {})
    if definition.version in versions:
        raise ConfigurationError(
            f"{definition.target} already has version {definition.version}: give the new function another version"
        )
    versions[definition.version] = definition
