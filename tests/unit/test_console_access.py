"""Who may use the console: users and passwords, proxies, roles, and what is refused as unsafe."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path
from threading import Barrier

import pytest
from starlette.requests import HTTPConnection
from starlette.responses import Response

from waooaw_celery.console.access import authentication, passwords
from waooaw_celery.console.access.authentication import BasicAuthentication, ProxyAuthentication
from waooaw_celery.console.access.configuration import (
    AccessOptions,
    OpenIdProvider,
    TrustedProxies,
    authentication_of,
    is_loopback,
)
from waooaw_celery.console.access.passwords import hash_password, is_password, read_users, user_line
from waooaw_celery.console.access.protection import own_path
from waooaw_celery.console.access.roles import Person, Role, parse_role, roles_of
from waooaw_celery.errors import ConfigurationError

PASSWORD = "correct horse battery"  # noqa: S105 - of a test
NOBODY: Mapping[Role, list[str]] = {}
EVERYBODY = {Role.VIEWER: ["*"]}


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of a real hash is a third of a second."""
    monkeypatch.setattr(passwords, "COST", (2**14, 8, 1))


def connection(
    headers: dict[str, str] | None = None, client: str = "192.0.2.1", path: str = "/"
) -> HTTPConnection:
    encoded = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    return HTTPConnection(
        {
            "type": "http",
            "method": "GET",
            "path": path,
            "headers": encoded,
            "client": (client, 1),
            "query_string": b"",
        }
    )


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def users_file(folder: Path, *lines: str) -> Path:
    path = folder / "users"
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    return path


def test_a_password_is_checked_against_its_hash() -> None:
    """Two hashes of one password differ, and neither has the password."""
    first, second = hash_password(PASSWORD), hash_password(PASSWORD)
    assert first != second
    assert PASSWORD not in first
    assert is_password(PASSWORD, first)
    assert not is_password(PASSWORD + " ", first)
    assert is_password("pässwörd-\ud800", hash_password("pässwörd-\ud800"))


def test_users_are_read_from_their_file(tmp_path: Path) -> None:
    """Lines that are empty or begin with # are skipped."""
    line = user_line("ada", frozenset({Role.OPERATOR, Role.OFFICER}), PASSWORD)
    users = read_users(users_file(tmp_path, "# who", "", line))
    assert users["ada"].person == Person(name="ada", roles=frozenset({Role.OPERATOR, Role.OFFICER}))


def test_a_wrong_file_of_users_is_refused(tmp_path: Path) -> None:
    """The error says which line is wrong, and never has a password."""
    line = user_line("ada", frozenset({Role.VIEWER}), PASSWORD)
    for lines, expected in (
        (["ada:viewer"], "line 1 is not name:roles:hash"),
        (["ada:viewer:secret"], "line 1 has no hash"),
        (["ada:king:" + line.split(":")[2]], "'king' is no role"),
        ([line, line], "ada has a line already"),
        (["a da" + line[3:]], "is not name:roles:hash"),
        ([line.replace("$8$", "$x$")], "no hash"),
        ([line.replace("16384", "2")], "no hash"),
        (["# nobody"], "has no user"),
    ):
        with pytest.raises(ConfigurationError, match=expected) as caught:
            read_users(users_file(tmp_path, *lines))
        assert "secret" not in str(caught.value)
    path = users_file(tmp_path, line)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match=r"others may read or change .* chmod 600"):
        read_users(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_users(tmp_path / "nowhere")
    for name, password in (("a:b", PASSWORD), ("", PASSWORD), ("ada", "short")):
        with pytest.raises(ConfigurationError):
            user_line(name, frozenset({Role.VIEWER}), password)


def test_basic_authentication_asks_for_a_name_and_a_password(tmp_path: Path) -> None:
    """A wrong password, an unknown name and a damaged header get the same answer."""
    users = read_users(users_file(tmp_path, user_line("ada", frozenset({Role.OFFICER}), PASSWORD)))
    access = BasicAuthentication(users)
    for headers in (
        None,
        basic("ada", "wrong"),
        basic("eve", PASSWORD),
        basic("", ""),
        {"Authorization": "Basic %%%"},
        {"Authorization": "Bearer x"},
        {"Authorization": "Basic /w=="},
    ):
        answer = access.identify(connection(headers))
        assert isinstance(answer, Response)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    for _ in range(2):  # the second time, the password is remembered
        person = access.identify(connection(basic("ada", PASSWORD)))
        assert isinstance(person, Person)
        assert person.may(Role.OFFICER)
        assert not person.may(Role.OPERATOR)


def test_who_guesses_passwords_must_wait(tmp_path: Path) -> None:
    """After ten wrong ones a client gets 429, even with the right one; other clients go on."""
    users = read_users(users_file(tmp_path, user_line("ada", frozenset({Role.VIEWER}), PASSWORD)))
    access = BasicAuthentication(users)
    for number in range(authentication.MAX_FAILURES):
        access.identify(connection(basic("ada", f"guess {number}")))
    blocked = access.identify(connection(basic("ada", PASSWORD)))
    assert isinstance(blocked, Response)
    assert (blocked.status_code, blocked.headers["Retry-After"]) == (429, "60")
    assert isinstance(access.identify(connection(basic("ada", PASSWORD), client="192.0.2.2")), Person)


def test_who_guesses_many_passwords_at_once_must_wait_too(tmp_path: Path) -> None:
    """Each guess takes a third of a second: those that wait for their turn are refused once ten were wrong."""
    access = BasicAuthentication(read_users(users_file(tmp_path, user_line("ada", frozenset(Role), PASSWORD))))
    barrier = Barrier(40)

    def guess(number: int) -> int:
        barrier.wait(10)
        answer = access.identify(connection(basic("ada", f"wrong {number}")))
        assert isinstance(answer, Response)
        return answer.status_code

    with ThreadPoolExecutor(40) as threads:
        assert Counter(threads.map(guess, range(40))) == {401: 10, 429: 30}


def test_only_a_trusted_proxy_names_people() -> None:
    """From elsewhere the header is refused; with two of them nobody knows which is right."""
    grants = {Role.VIEWER: ["*"], Role.OPERATOR: ["sre"], Role.OFFICER: ["ada"]}
    access = ProxyAuthentication([ip_network("192.0.2.0/24")], "X-User", "X-Groups", grants)
    person = access.identify(connection({"X-User": " ada ", "X-Groups": "dev, sre ,"}))
    assert isinstance(person, Person)
    assert (person.name, person.roles) == ("ada", frozenset(Role))
    viewer = access.identify(connection({"X-User": "bob"}, "::ffff:192.0.2.9"))
    assert isinstance(viewer, Person)
    assert viewer.roles == {Role.VIEWER}
    for headers, client, status in (
        ({"X-User": "ada"}, "198.51.100.1", 403),
        ({"X-User": "ada"}, "not-an-address", 403),
        ({"X-User": "  "}, "192.0.2.9", 401),
        ({}, "192.0.2.9", 401),
    ):
        answer = access.identify(connection(headers, client))
        assert isinstance(answer, Response)
        assert answer.status_code == status
    twice = connection({"X-User": "bob"})
    twice.scope["headers"].append((b"x-user", b"ada"))
    answer = access.identify(HTTPConnection(twice.scope))
    assert isinstance(answer, Response)
    twice = connection({"X-User": "bob", "X-Groups": "sre"})
    twice.scope["headers"].append((b"x-groups", b"dev"))  # the first may be the client's, before the proxy's
    answer = access.identify(HTTPConnection(twice.scope))
    assert isinstance(answer, Response)
    strict = ProxyAuthentication([ip_network("192.0.2.1")], "X-User", None, {Role.OFFICER: ["ada"]})
    refused = strict.identify(connection({"X-User": "bob", "X-Groups": "ada"}))
    assert isinstance(refused, Response)
    assert refused.status_code == 403


def test_roles_are_granted_by_name_or_group() -> None:
    """A person who has any role is a viewer too."""
    grants = {Role.VIEWER: [], Role.OPERATOR: ["sre"], Role.OFFICER: ["ada"]}
    assert roles_of(["bob", "sre"], grants) == {Role.OPERATOR}
    assert roles_of(["eve"], grants) == frozenset()
    assert Person(name="bob", roles=frozenset({Role.OPERATOR})).may(Role.VIEWER)
    assert not Person(name="eve", roles=frozenset()).may(Role.VIEWER)
    assert parse_role(" Officer") is Role.OFFICER
    with pytest.raises(ConfigurationError, match="viewer, operator, officer"):
        parse_role("root")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"host": "0.0.0.0"}, "open to everybody who reaches 0.0.0.0"),  # noqa: S104 - refused
        (
            {"host": "127.0.0.1", "public_url": "https://c.example"},
            "open to everybody who reaches https://c.example",
        ),
        ({"host": "192.0.2.1", "users": Path("users")}, "passwords would travel in clear"),
        ({"host": "::1", "public_url": "c.example"}, "is no URL"),
        ({"host": "::1", "proxies": TrustedProxies(networks=["192.0.2.1"])}, "nobody has a role"),
        (
            {"host": "::1", "proxies": TrustedProxies(networks=["proxy"]), "grants": EVERYBODY},
            "no address or network",
        ),
        (
            {"host": "::1", "proxies": TrustedProxies(networks=["192.0.2.1"]), "users": Path("users")},
            "choose one way to authenticate",
        ),
        (
            {
                "host": "::1",
                "grants": EVERYBODY,
                "provider": OpenIdProvider(issuer="https://i", client_id="c", client_secret="s"),  # noqa: S106
            },
            "needs --public-url",
        ),
        (
            {
                "host": "::1",
                "grants": EVERYBODY,
                "public_url": "http://c.example",
                "provider": OpenIdProvider(issuer="https://i", client_id="c", client_secret="s"),  # noqa: S106
            },
            "needs HTTPS",
        ),
        (
            {
                "host": "::1",
                "grants": EVERYBODY,
                "public_url": "https://c.example",
                "provider": OpenIdProvider(issuer="https://i", client_id="c", client_secret=""),
            },
            "WAOOAW_CONSOLE_OIDC_SECRET",
        ),
    ],
)
def test_an_unsafe_configuration_is_refused(options: dict[str, object], expected: str) -> None:
    """The console does not start when strangers could use it, or passwords could be read on the way."""
    with pytest.raises(ConfigurationError, match=expected):
        authentication_of(AccessOptions(**{"grants": NOBODY, **options}))  # type: ignore[arg-type]


def test_on_loopback_nobody_is_asked() -> None:
    """The person is who started the console, with all roles."""
    access = authentication_of(AccessOptions(host="127.0.0.1", grants=NOBODY))
    person = access.identify(connection())
    assert isinstance(person, Person)
    assert person.name
    assert person.roles == frozenset(Role)
    for host, expected in (
        ("localhost", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("db", False),
    ):
        assert is_loopback(host) is expected


def test_the_console_knows_its_names() -> None:
    """A request by another name comes from a page that lets its own name point here."""
    options = AccessOptions(
        host="127.0.0.1", grants=NOBODY, allowed_hosts=["box"], public_url="https://c.example:8443/"
    )
    assert set(options.hosts) == {"localhost", "127.0.0.1", "::1", "box", "c.example"}
    assert options.is_secure
    assert not AccessOptions(host="127.0.0.1", grants=NOBODY).is_secure
    assert set(AccessOptions(host="192.0.2.1", grants=NOBODY).hosts) == {"192.0.2.1"}
    assert "127.0.0.2" in AccessOptions(host="127.0.0.2", grants=NOBODY).hosts


def test_a_path_never_leaves_the_site() -> None:
    """Browsers read a backslash as a slash."""
    for path in ("//evil.example", "/\\evil.example", "\\\\evil.example", "https://evil.example", "evil", ""):
        assert own_path(path) == "/", path
    assert own_path("/messages?from=a") == "/messages"
