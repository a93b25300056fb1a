"""The contracts of other agents' methods, by which requests are checked before they are sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from waooaw_celery.discovery.contracts.check import ArgumentCheck
from waooaw_celery.discovery.contracts.contract import PARAMETERS
from waooaw_celery.errors import InvalidArguments, StoreUnavailable
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.validation import JSON
from waooaw_celery.store.agents.record import PROFILE_FACT
from waooaw_celery.store.agents.registry import AgentRegistry

#: Seconds after which contracts that refuse a call are read again; those of an agent that declares none.
REFUSED_SECONDS, ABSENT_SECONDS = 1.0, 10.0
#: Methods whose contracts are remembered.
MAX_REMEMBERED = 10_000


class _Known(NamedTuple):
    checks: tuple[ArgumentCheck, ...]
    read_at: float


class KnownContracts:
    """The contracts of other agents' methods.

    They are read once, and again when they refuse a call: a newer version of the agent may accept it. What a newer
    version refuses is found where the request arrives.

    Args:
        registry: returns the store of agents.
    """

    def __init__(self, registry: Callable[[], AgentRegistry]) -> None:
        self._registry = registry
        self._known: dict[HandlerName, _Known] = {}

    def check(self, target: HandlerName, arguments: Mapping[str, JSON]) -> None:
        """Check the arguments of a request. While two versions of an agent run, one of them must accept them.

        Args:
            target: the agent and its method.
            arguments: the arguments by name.

        Raises:
            InvalidArguments: no living worker of the agent accepts them.
            StoreUnavailable: the store does not answer, and the contract is not known yet.
        """
        known = self._known.get(target)
        if known is None or (not known.checks and time.monotonic() - known.read_at > ABSENT_SECONDS):
            known = self._read(target)
        refusal = _refusal(known, arguments)
        if refusal is None:
            return
        newer: InvalidArguments | None = refusal
        if time.monotonic() - known.read_at > REFUSED_SECONDS:
            try:
                newer = _refusal(self._read(target), arguments)
            except StoreUnavailable as error:  # what is known decides
                raise refusal from error
        if newer is not None:
            raise newer

    def _read(self, target: HandlerName) -> _Known:
        registry = self._registry()
        [record] = registry.read([target.agent])
        workers = [
            (record.name, node, str(report[PROFILE_FACT]))
            for node, report in record.reports.items()
            if report.get(PROFILE_FACT)
        ]
        schemas: list[Any] = []
        for profile in registry.profiles(workers).values():
            contract = (profile.get("contracts") or {}).get(target.handler)
            if contract is not None and contract.get(PARAMETERS) not in schemas:
                schemas.append(contract.get(PARAMETERS))
        checks = tuple(ArgumentCheck(str(target), schema) for schema in schemas if isinstance(schema, Mapping))
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        known = self._known[target] = _Known(checks, time.monotonic())
        return known


def _refusal(known: _Known, arguments: Mapping[str, JSON]) -> InvalidArguments | None:
    refusal = None
    for check in known.checks:
        try:
            check.check(arguments)
        except InvalidArguments as error:
            refusal = refusal or error
        else:
            return None
    return refusal
