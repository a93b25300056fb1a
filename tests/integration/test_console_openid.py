"""The console with OpenID Connect: a login at a real provider over HTTP, and logins that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import RSAKey
from openid_provider import Provider, openid_provider
from starlette.testclient import TestClient

from waooaw_celery import create_app
from waooaw_celery.console.access.configuration import AccessOptions, OpenIdProvider, authentication_of
from waooaw_celery.console.access.roles import Role
from waooaw_celery.console.application import ConsoleOptions, create_console

URL = "http://localhost"


@pytest.fixture
def provider() -> Iterator[Provider]:
    with openid_provider() as server:
        yield server


@pytest.fixture
def client(redis_url: str, provider: Provider, tmp_path: Path) -> Iterator[TestClient]:
    options = AccessOptions(
        host="127.0.0.1",
        public_url=URL,
        grants={Role.VIEWER: ["sre"], Role.OFFICER: ["ada"]},
        provider=OpenIdProvider(issuer=provider.issuer, client_id="console", client_secret="s3cret"),  # noqa: S106
    )
    with create_app(broker_url=redis_url, result_backend=redis_url, waooaw_spool_folder=str(tmp_path)) as app:
        console = create_console(
            app, ConsoleOptions(authentication=authentication_of(options), hosts=options.hosts)
        )
        with TestClient(console.asgi, base_url=URL, follow_redirects=False) as found:
            yield found


def log_in(client: TestClient, provider: Provider, path: str = "/agents") -> Any:
    """Follow the redirects to the provider and back, as a browser does; returns the answer to the callback."""
    import httpx2

    assert client.get(path).headers["Location"] == "/login"
    asked = client.get("/login").headers["Location"]
    assert asked.startswith(f"{provider.issuer}/authorize?")
    back = httpx2.get(asked, timeout=10).headers["Location"]
    return client.get(back)


def test_a_person_logs_in_and_out(client: TestClient, provider: Provider) -> None:
    """After the login the browser is at the page it asked for; after the logout it must log in again."""
    answer = log_in(client, provider)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/agents")
    page = client.get("/agents")
    assert page.status_code == 200
    assert 'title="officer, viewer">ada</span>' in page.text
    assert client.post("/logout").status_code == 200
    assert client.get("/agents").headers["Location"] == "/login"


def test_a_person_without_a_role_is_refused(client: TestClient, provider: Provider) -> None:
    """The provider knows more people than may use the console."""
    provider.claims = {"preferred_username": "eve", "groups": ["sales"]}
    log_in(client, provider)
    answer = client.get("/agents")
    assert answer.status_code == 403
    assert "eve has no role" in answer.text


def test_the_search_of_an_address_outlives_the_login(client: TestClient, provider: Provider) -> None:
    """Who is sent the address of a search sees the search, and not the whole list."""
    answer = log_in(client, provider, "/messages?from=shop&status=failed")
    assert answer.headers["Location"] == "/messages?from=shop&status=failed"
    client.cookies.clear()
    assert log_in(client, provider, f"/messages?from={'x' * 5000}").headers["Location"] == "/messages"


def test_a_person_of_many_groups_logs_in(client: TestClient, provider: Provider) -> None:
    """A browser drops a cookie of more than 4 KiB: the session has only groups that give a role."""
    groups = [*(f"department-{number:032}" for number in range(300)), "sre", 7, ["sre"]]
    provider.claims = {"preferred_username": "eve", "groups": groups}
    assert len(log_in(client, provider).headers["Set-Cookie"]) < 4096
    assert 'title="viewer">eve</span>' in client.get("/agents").text


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another"},
        {"iss": "https://evil.example"},
        {"exp": 1},
        {"nonce": "of another login"},
        {"preferred_username": ""},
        {"preferred_username": ["ada"]},
    ],
)
def test_a_wrong_token_is_refused(client: TestClient, provider: Provider, changes: dict[str, Any]) -> None:
    """One for another client, of another issuer, expired, replayed, or without a name."""
    provider.changes = changes
    assert log_in(client, provider).status_code == 403
    assert client.get("/agents").headers["Location"] == "/login"


def test_a_token_with_a_foreign_signature_is_refused(client: TestClient, provider: Provider) -> None:
    """The key is not one of those that the provider publishes."""
    provider.key = RSAKey.generate_key(2048, {"kid": "1"})
    assert log_in(client, provider).status_code == 403
    assert client.get("/agents").headers["Location"] == "/login"


def test_a_forged_answer_or_cookie_is_refused(client: TestClient, provider: Provider) -> None:
    """An answer that this browser did not ask for, and a session that nobody signed."""
    client.get("/login")
    assert client.get("/login/callback?code=x&state=forged").status_code == 403
    client.cookies.set("waooaw_session", "eyJwZXJzb24iOiB7Im5hbWUiOiAiYWRhIn19.x.y")
    assert client.get("/agents").headers["Location"] == "/login"


def test_a_change_and_a_live_page_are_not_sent_to_the_login(client: TestClient) -> None:
    """A form would be lost, and a stream cannot log in."""
    assert client.post("/changes/pause-sender", data={}).status_code == 401
    assert client.get("/live/overview").status_code == 401


def test_a_provider_that_is_away_is_said(redis_url: str, tmp_path: Path) -> None:
    """The page says so, instead of an error of the program."""
    options = AccessOptions(
        host="127.0.0.1",
        public_url=URL,
        grants={Role.VIEWER: ["*"]},
        provider=OpenIdProvider(issuer="http://127.0.0.1:9", client_id="c", client_secret="s"),  # noqa: S106
    )
    with create_app(broker_url=redis_url, result_backend=redis_url, waooaw_spool_folder=str(tmp_path)) as app:
        console = create_console(
            app, ConsoleOptions(authentication=authentication_of(options), hosts=options.hosts)
        )
        with TestClient(console.asgi, base_url=URL) as client:
            answer = client.get("/login")
    assert answer.status_code == 503
    assert "does not answer" in answer.text
