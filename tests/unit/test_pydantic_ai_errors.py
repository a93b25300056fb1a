"""Agents of pydantic-ai in workflows: what needs no worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelHTTPError,
    ModelRateLimitError,
    ModelRequestTimeout,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
    UserError,
)

from waooaw_celery.agents import DurableAgent, RetryPolicy
from waooaw_celery.errors import ConfigurationError, InvalidMessage, StepFailed
from waooaw_celery.workflows.errors_form import error_from_json, error_to_json
from waooaw_celery.workflows.pydantic_ai.errors import add_fields, original
from waooaw_celery.workflows.pydantic_ai.operations import StepOptions, step_part


def through_the_journal(error: Exception) -> Exception:
    """Return an error as a replay raises it."""
    try:
        raise error
    except Exception as raised:  # noqa: BLE001 - any error
        add_fields(raised)
        failed = error_from_json(error_to_json(raised), "support model#1")
    assert isinstance(failed, StepFailed)
    return original(failed)


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (ModelHTTPError(503, "gpt", {"error": ["busy"]}), {"status_code": 503, "body": {"error": ["busy"]}}),
        (ModelAPIError("gpt", "no answer"), {"model_name": "gpt", "message": "no answer"}),
        (ModelRequestTimeout("gpt", 7.5), {"timeout": 7.5}),
        (UnexpectedModelBehavior("odd", '{"a": 1}'), {"message": "odd"}),
        (UsageLimitExceeded("too many"), {}),
        (UserError("no key"), {"message": "no key"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_keeps_its_class_and_its_fields(error: Exception, fields: dict[str, Any]) -> None:
    """Its text too."""
    found = through_the_journal(error)
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert {name: getattr(found, name) for name in fields} == fields


def test_an_http_error_keeps_its_category() -> None:
    """It is of two classes: code may catch either. Its headers, which may hold secrets, are not recorded."""
    error = ModelHTTPError.for_category(
        ModelRateLimitError,
        status_code=429,
        model_name="gpt",
        headers={"retry-after": "7", "set-cookie": "secret"},
    )
    found = through_the_journal(error)
    assert isinstance(found, ModelHTTPError)
    assert isinstance(found, ModelRateLimitError)
    assert (found.status_code, found.retry_after, found.headers) == (429, 7.0, None)
    assert "secret" not in str(error.__notes__)


def test_a_large_body_of_an_error_is_left_out() -> None:
    """The rest is kept."""
    found = through_the_journal(ModelHTTPError(500, "gpt", "x" * 50_000))
    assert isinstance(found, ModelHTTPError)
    assert (found.status_code, found.body) == (500, None)


@pytest.mark.parametrize("error", [ValueError("no"), ModelRetry("again")])
def test_another_error_stays_the_failure_of_a_step(error: Exception) -> None:
    """It has the name of its class."""
    found = through_the_journal(error)
    assert isinstance(found, StepFailed)
    assert found.type == type(error).__name__


def test_an_error_of_another_version_stays_the_failure_of_a_step() -> None:
    """Its class or its fields may not exist any more."""
    for note in (
        '{"class": "NoSuchError", "http": false, "fields": {}}',
        '{"class": "UserError", "fields": {"a": 1}, "http": false}',
    ):
        failed = StepFailed("step", "UserError", "text", f"Traceback\npydantic-ai error: {note}")
        assert original(failed) is failed


def test_names_of_steps_have_no_characters_of_paths() -> None:
    """Two texts have two names."""
    assert step_part("call_1") == "call_1"
    parts = {step_part(text) for text in ("a/b", "a#b", "a[b", "x" * 300, "x" * 301)}
    assert len(parts) == 5
    assert not any(set("#/[]") & set(part) or len(part) > 100 for part in parts)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DurableAgent(Agent("test")), ConfigurationError, "needs a name"),
        (lambda: DurableAgent(Agent("test", name="a"), timeout=0), InvalidMessage, "longer than 0"),
        (lambda: DurableAgent(Agent("test", name="a"), retry=-1), ConfigurationError, "retries"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    """When the durable agent is made."""
    with pytest.raises(error, match=message):
        make()


def test_errors_that_another_attempt_cannot_mend_are_not_retried() -> None:
    """Such as a result that cannot be recorded: the request would be paid again."""
    options = StepOptions.of(RetryPolicy.fixed(5), 10)
    assert options.retry.should_retry(ModelHTTPError(500, "gpt"))
    assert not options.retry.should_retry(UserError("no key"))
    assert not options.retry.should_retry(InvalidMessage("too large"))


def test_pydantic_ai_is_imported_when_it_is_used() -> None:
    """Without it the rest of the package works, and the error says what to install."""
    code = (
        "import sys; sys.modules['pydantic_ai'] = None\n"
        "from waooaw_celery.agents import Agent, Flow, Workflows\n"
        "try:\n    from waooaw_celery.agents import DurableAgent\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "pip install 'waooaw-celery[pydantic-ai]'" in done.stdout
