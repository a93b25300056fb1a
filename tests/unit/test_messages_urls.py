"""The check of servers' URLs, the same for every setting."""

from __future__ import annotations

import traceback
from contextlib import closing
from typing import Any
from urllib.parse import unquote

import pytest
from sqlalchemy import make_url

from waooaw_celery import create_app
from waooaw_celery.errors import ConfigurationError, WaooawError
from waooaw_celery.ledger.database.engine import database_url
from waooaw_celery.messages.urls import check_urls, shown_url

#: A password and its two halves, as drivers and Python show them when they split it in the wrong place.
PASSWORDS = ["Left@Right", "Left/Right", "Left#Right", "Left?Right", "Left[Right", "Left]Right", "Left\u2100Right"]
SETTINGS = [
    "broker_url",
    "broker_read_url",
    "broker_write_url",
    "result_backend",
    "waooaw_redis_url",
    "waooaw_database_url",
]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_password_that_is_not_encoded_is_refused(setting: str, password: str) -> None:
    """The error of each setting says what to encode, and neither it nor its traceback shows half of a password."""
    scheme = "postgresql" if setting == "waooaw_database_url" else "redis"
    config: dict[str, Any] = {"broker_url": "redis://h", setting: f"{scheme}://user:{password}@h/0"}
    with (
        closing(create_app(**config)) as app,
        pytest.raises(ConfigurationError, match=f"{setting} .*percent-encode .*@ as %40, .*/ as %2F") as raised,
    ):
        app.check()
    text = "".join(traceback.format_exception(raised.value))
    assert "Left" not in text
    assert "Right" not in text
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379/0",
        "redis://:p%40ss%2Fword@h:6379/0",
        "redis://user:a:b@[::1]:6379/0",
        "redis+socket:///tmp/x@y.sock?virtual_host=1",
        "redis://h/0?password=a@b",
        "sentinel://:pw@h1:26379;sentinel://:pw@h2:26379",
        "amqp://guest:guest@localhost:5672//",
        "mongodb://u:p@h1:1,h2:2/db",
        "postgresql:///db?host=/tmp",
        "sqlite:////tmp/a folder/x@y.db",
        "memory://",
        "rpc://",
    ],
)
def test_valid_urls_pass(url: str) -> None:
    """What every driver reads alike is not refused."""
    check_urls("broker_url", url)


@pytest.mark.parametrize(
    "url", ["redis://:12/34@h", "redis://:12?34@h", "redis://:a;b@h/0", "redis://h:Left", "h:1"]
)
def test_urls_that_drivers_would_misread_are_refused(url: str) -> None:
    """A number before the character would pass for a port, and what follows ``;`` for another URL."""
    with pytest.raises(ConfigurationError, match=r"broker_url .*cannot be read") as raised:
        check_urls("broker_url", url)
    assert "Left" not in str(raised.value)
    assert "34" not in str(raised.value)


def test_a_shown_url_has_no_secret() -> None:
    """User, password and query are left out; a URL that cannot be read is only its scheme."""
    assert shown_url("redis://user:secret@h:1/0?password=x") == "redis://h:1/0"
    assert shown_url("redis://:se/cret@h:1/0") == "redis://…"
    assert shown_url(["memory://", "amqp://u:p@h//"]) == "memory://, amqp://h//"


def test_an_encoded_password_reaches_the_database_whole() -> None:
    """What the error advises works: the database gets the password decoded."""
    assert (
        make_url("postgresql://u:Left%40Right@h/d").password
        == database_url("postgresql://u:Left%40Right@h/d").password
    )
    assert database_url("postgresql://u:Left%2FRight@h/d").password == unquote("Left%2FRight")
    with pytest.raises(WaooawError):
        database_url("postgresql://u:Left/Right@h/d")
