"""The settings of this process, its handlers, and the versions of what it uses."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from waooaw_celery.app.app import AgentApp
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.maintenance.diagnostics.finding import Finding, fail, ok, warn
from waooaw_celery.worker.health.startup_checks import (
    check_groups,
    check_once,
    check_time_limits,
    consumer_timeout_faults,
)

#: The distribution whose requirements are compared, and those of them that a finding names.
DISTRIBUTION, SHOWN = "waooaw-celery", ("celery", "kombu", "redis")


def settings(app: AgentApp) -> Iterator[Finding]:
    """Check the settings of this process, without asking a server."""
    try:
        _ = app.settings, app.driver, app.packer, app.selector.default_policy
        _ = app.components.is_target_failure, app.components.has_store
    except ConfigurationError as error:
        yield fail("settings", str(error))
        return
    if not app.components.has_store:
        sentence = "there is neither a ledger nor a Redis, which know the agents and their messages"
        yield fail("settings", f"{sentence}. Set waooaw_database_url, or waooaw_redis_url")
        return
    yield ok("settings", "they can be read, and name a broker and a store")


def handlers_of_this_application(app: AgentApp) -> Iterator[Finding]:
    """Check the handlers in this application's code as a worker does at its start. Name one with ``-A``."""
    name = "handlers"
    checks: tuple[Callable[[Any], None], ...] = (check_time_limits, check_once, check_groups)
    found: list[Finding] = []
    for check in checks:
        try:
            check(app)
        except ConfigurationError as error:
            found.append(fail(name, f"a worker of this application does not start: {error}"))
    if app.driver == "amqp":
        found += [warn(name, fault.sentence) for fault in consumer_timeout_faults(app)]
    if not found and app.agents:
        found = [ok(name, f"those of {', '.join(sorted(app.agents))} can run with these settings")]
    yield from found


def versions(_: AgentApp) -> Iterator[Finding]:
    """Compare the versions of Python and of the required packages with those that this package supports."""
    try:
        facts = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        sentence = f"{DISTRIBUTION} is not installed as a package, so the versions cannot be compared"
        yield warn("versions", f"{sentence}. Install it with pip")
        return
    wrong = []
    python = platform.python_version()
    if not SpecifierSet(facts["Requires-Python"] or "").contains(python, prereleases=True):
        wrong.append(f"Python {python} (needed: {facts['Requires-Python']})")
    for line in metadata.requires(DISTRIBUTION) or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _version(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed or 'is missing'} (needed: {requirement.specifier})")
    if wrong:
        sentence = f"not supported: {', '.join(wrong)}. Install the supported versions: pip install {DISTRIBUTION}"
        yield fail("versions", sentence)
    else:
        shown = ", ".join(f"{each} {_version(each)}" for each in SHOWN)
        yield ok("versions", f"{DISTRIBUTION} {facts['Version']} with Python {python}, {shown}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
