"""What an agent declares about itself: its capabilities, the contracts of its methods, tags, weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from waooaw_celery.discovery.address import accepts, check_capability_name, check_version
from waooaw_celery.discovery.contracts.contract import WORKFLOW, method_contract
from waooaw_celery.errors import ConfigurationError, InvalidMessage
from waooaw_celery.messages.json_form import JsonForm
from waooaw_celery.messages.validation import JSON, check_tags, json_copy

#: The most bytes of an agent's metadata, as JSON.
MAX_METADATA = 16 * 1024
#: The largest weight: the sum of all weights must stay a number.
MAX_WEIGHT = 1_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability(JsonForm):
    """Something that an agent can do.

    Attributes:
        name: its name, such as ``summarise``.
        version: its version, such as ``2.1``; None: it has none.
        method: the agent's method that does it; None: the agent does it when it gets a message.
    """

    name: str
    version: str | None = None
    method: str | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"

    def meets(self, condition: str | None) -> bool:
        """Return whether its version meets a condition, such as ``>=2``; None is met by every version."""
        return accepts(condition, self.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(JsonForm):
    """What an agent declares about itself.

    Attributes:
        version: version of the agent, or None.
        capabilities: what it can do.
        tags: tags by which it is found.
        metadata: a JSON object of its own.
        weight: its share of the messages to a capability, relative to the other agents', with the policy
            ``weighted`` or ``sticky``. With 0 it gets none of them.
        max_in_flight: number of running messages from which it counts as BUSY; None: it never does.
        contracts: the contracts of its methods, by name: JSON Schemas of ``parameters`` and ``result``.
        subscribes: patterns of the topics to which it subscribes.
    """

    version: str | None = None
    capabilities: tuple[Capability, ...] = ()
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] | None = None
    weight: float = 1.0
    max_in_flight: int | None = None
    contracts: dict[str, Any] | None = None
    subscribes: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return a short text that differs for every other profile."""
        return digest_of(self.to_dict())


def digest_of(profile: Mapping[str, JSON]) -> str:
    """Return the digest of the JSON form of a profile."""
    text = json.dumps(profile, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def check_weight(weight: object) -> float:
    """Return the weight of an agent, if it is valid.

    Raises:
        InvalidMessage: it is no number from 0 to ``MAX_WEIGHT``.
    """
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= MAX_WEIGHT:
        raise InvalidMessage(f"weight must be a number from 0 to {MAX_WEIGHT:g}, not {weight!r:.80}")
    return float(weight)


def make_profile(
    *,
    version: str | None = None,
    capabilities: Iterable[str | Capability] = (),
    tags: Iterable[str] = (),
    metadata: Mapping[str, JSON] | None = None,
    weight: float = 1.0,
    max_in_flight: int | None = None,
    contracts: Mapping[str, JSON] | None = None,
    subscribes: Iterable[str] = (),
) -> Profile:
    """Return a checked profile. The arguments are its attributes; a capability may be only a name.

    Raises:
        InvalidMessage: an argument is invalid.
    """
    version = None if version is None else check_version(version)
    if isinstance(capabilities, str):
        raise InvalidMessage(f"capabilities must be a list, such as ['ocr'], not {capabilities!r:.80}")
    found = [
        each if isinstance(each, Capability) else Capability(name=each, version=version) for each in capabilities
    ]
    for each in found:
        check_capability_name(each.name)
        if each.version is not None:
            check_version(each.version)
    copied = None if metadata is None else json_copy(dict(metadata), "metadata")
    if copied is not None and len(json.dumps(copied, default=str)) > MAX_METADATA:
        raise InvalidMessage(
            f"the metadata of an agent may have {MAX_METADATA} bytes as JSON, and these have more"
        )
    check_weight(weight)
    if max_in_flight is not None and (type(max_in_flight) is not int or max_in_flight < 1):
        raise InvalidMessage(f"max_in_flight must be a whole number from 1, or None, not {max_in_flight!r:.80}")
    return Profile(
        version=version,
        capabilities=tuple(sorted(found, key=lambda each: (each.name, each.version or "", each.method or ""))),
        tags=check_tags(tags),
        metadata=copied,
        weight=float(weight),
        max_in_flight=max_in_flight,
        contracts=dict(contracts) if contracts else None,
        subscribes=tuple(sorted(set(subscribes))),
    )


class Declaration:
    """What the code of an agent declares: the arguments of ``Agent``, and its methods.

    Args:
        slow_seconds: duration of its messages from which it is DEGRADED, in seconds; None: none.
        profile: the arguments of ``make_profile``.

    Raises:
        InvalidMessage: an argument is invalid.
    """

    def __init__(self, *, slow_seconds: float | None = None, **profile: Any) -> None:
        if slow_seconds is not None and (
            isinstance(slow_seconds, bool) or not isinstance(slow_seconds, int | float) or not slow_seconds > 0
        ):
            raise InvalidMessage(f"slow_seconds must be a positive number of seconds, not {slow_seconds!r:.80}")
        self._base = make_profile(**profile)
        self.slow_seconds = slow_seconds
        self._methods: dict[str, tuple[Callable[..., Any], bool]] = {}
        self._capabilities: dict[str, Capability] = {}
        self._workflows: set[str] = set()
        self._contracts: dict[str, dict[str, Any] | None] = {}
        #: The checks of the agent, by name: see ``Agent.health_check``.
        self.checks: dict[str, Any] = {}

    def add_method(
        self,
        handler: str,
        function: Callable[..., Any],
        bind: bool,
        capability: str | None = None,
        version: str | None = None,
    ) -> None:
        """Add a method.

        Args:
            handler: its name.
            function: the method, as it was written.
            bind: whether its first parameter is the Celery task.
            capability: the capability that it is, or None.
            version: version of the capability; None: that of the agent, or else 1.

        Raises:
            ConfigurationError: the name of the capability or the version is invalid, or the agent has it already,
                or there is a version and no capability.
        """
        if capability is None and version is not None:
            raise ConfigurationError(
                f"the method {handler!r} has a version and no capability: add capability={handler!r}, or leave "
                "the version out"
            )
        if capability is not None:
            try:
                check_capability_name(capability)
                version = check_version(version or self._base.version or "1")
            except InvalidMessage as error:
                raise ConfigurationError(f"the method {handler!r}: {error}") from error
            added = Capability(name=capability, version=version, method=handler)
            for other in self._capabilities.values():
                if (other.name, other.version) == (capability, version):
                    raise ConfigurationError(
                        f"the methods {other.method!r} and {handler!r} both are {added}: give them other versions"
                    )
            self._capabilities[handler] = added
        self._methods[handler] = function, bind

    def set_contract(self, handler: str, contract: dict[str, Any]) -> None:
        """Set the contract of a method whose signature does not tell it.

        Args:
            handler: its name.
            contract: the contract, as ``foreign_contract`` returns it.
        """
        self._contracts[handler] = contract

    def add_workflow(self, handler: str, function: Callable[..., Any]) -> None:
        """Add a workflow.

        Args:
            handler: its name.
            function: its function, whose first parameter is the flow.
        """
        self._workflows.add(handler)
        self._methods[handler] = function, True
        self._contracts.pop(handler, None)

    def capability_of(self, handler: str) -> Capability | None:
        """Return the capability that a method is, or None."""
        return self._capabilities.get(handler)

    def contract(self, handler: str) -> dict[str, Any] | None:
        """Return the contract of a method, or None if it has none."""
        if handler not in self._contracts:
            known = self._methods.get(handler)
            found = None if known is None else method_contract(*known)
            if found is not None and handler in self._workflows:
                found[WORKFLOW] = True
            self._contracts[handler] = found
        return self._contracts[handler]

    def profile(self, subscribes: Iterable[str] = ()) -> Profile:
        """Return what the agent declares now.

        Args:
            subscribes: patterns of the topics to which it subscribes.
        """
        base = self._base
        contracts = {name: contract for name in self._methods if (contract := self.contract(name)) is not None}
        return make_profile(
            version=base.version,
            capabilities=(*base.capabilities, *self._capabilities.values()),
            tags=base.tags,
            metadata=base.metadata,
            weight=base.weight,
            max_in_flight=base.max_in_flight,
            contracts=contracts,
            subscribes=subscribes,
        )
