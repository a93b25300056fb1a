"""Who speaks at an edge, and what it may reach: principals, keys, the depth of JSON, addresses, signatures."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import HTTPConnection

from waooaw_celery import Agent, create_app
from waooaw_celery.edges import McpAgent, RemoteAgent, verify_webhook, webhook
from waooaw_celery.edges.access.authentication import ApiKeys, FirstOf, TrustedProxy
from waooaw_celery.edges.access.principals_file import hash_key, new_key, parse_principals, read_principals
from waooaw_celery.edges.http.webhooks.signature import signed_headers
from waooaw_celery.edges.http.webhooks.subscription import MAX_RETRY_AFTER, _seconds
from waooaw_celery.edges.protection.depth import depth_of
from waooaw_celery.edges.protection.failures import MAX_FAILURES, Failures
from waooaw_celery.edges.protection.networks import networks
from waooaw_celery.edges.protection.outgoing import checked_address, is_public, public_client
from waooaw_celery.errors import ConfigurationError, NotPermitted

KEY = new_key()
SECRET = "whsec_" + "c2VjcmV0" * 4


def shown(client: str = "192.0.2.1", **headers: str | list[str]) -> HTTPConnection:
    """Return a request with some headers, from an address."""
    raw = []
    for name, values in headers.items():
        for value in [values] if isinstance(values, str) else values:
            raw.append((name.replace("_", "-").lower().encode(), value.encode()))
    return HTTPConnection({"type": "http", "headers": raw, "client": (client, 1)})


def test_the_file_of_principals_is_read(tmp_path: Path) -> None:
    """A principal is found by the hash of its key; the file never has the key."""
    path = tmp_path / "principals.toml"
    path.write_text(
        f'[portal]\nfrom_agent = "portal"\nkeys = ["{KEY[1]}"]\nmay_call = ["weather.*"]\n'
        'may_publish = ["orders.#"]\n'
    )
    found = read_principals(path).by_key[hash_key(KEY[0])]
    assert (found.name, found.from_agent, found.may_read) == ("portal", "portal", False)
    assert found.can_call("weather", "forecast")
    assert not found.can_call("crm", "lookup")
    found.check_may_publish("orders.eu.created")
    with pytest.raises(NotPermitted, match="no such may_publish"):
        found.check_may_publish("salaries.changed")
    assert len(KEY[0]) > 40
    assert KEY[0] not in path.read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "recognises nobody"),
        ("[a]\nfrom_agent = 'a'", "recognises nobody"),
        ("[a", "is not TOML"),
        ("[a]\nkeys = ['sha256:x']\nfrom_agent = 'a'", "never the key itself"),
        (f"[a]\nkeys = ['{KEY[0]}']\nfrom_agent = 'a'", "never the key itself"),
        ("[a]\nkeys = 'x'\nfrom_agent = 'a'", "keys must be a list of texts"),
        (f"[a]\nkeys = ['{KEY[1]}']", "from_agent must be"),
        (f"[a]\nkeys = ['{KEY[1]}']\nfrom_agent = 'celery'", "is reserved"),
        (f"[a]\nkeys = ['{KEY[1]}']\nfrom_agent = 'a'\nmay_cal = ['*']", "unknown key 'may_cal'"),
        (f"[a]\nkeys = ['{KEY[1]}']\nfrom_agent = 'a'\nmay_read = 'no'", "may_read must be true or false"),
        (f"[a]\nkeys = ['{KEY[1]}']\nfrom_agent = 'a'\nmay_publish = ['a..b']", "[a]"),
        ("a = 1", "is no entry"),
        ("['a b']\nfrom_agent = 'a'", "is no entry"),
        (
            f"[a]\nkeys = ['{KEY[1]}']\nfrom_agent = 'a'\n[b]\nkeys = ['{KEY[1]}']\nfrom_agent = 'b'",
            "has the same key",
        ),
        (f"[a]\nkeys = ['{KEY[1]}']\nfrom_agent = 'a'\nsubjects = ['']", "subjects must be a list of texts"),
    ],
    ids=range(15),
)
def test_a_wrong_file_of_principals_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    """With the entry and what to write instead."""
    path = tmp_path / "principals.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        read_principals(path)
    assert expected in str(refused.value)
    assert KEY[0] not in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """It is not there, or is no text."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_principals(tmp_path / "none.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="is not TOML"):
        read_principals(tmp_path / "binary")


def test_an_api_key_is_taken_from_either_header() -> None:
    """But not two different ones, and not a signed token."""
    principals = parse_principals({"portal": {"from_agent": "portal", "keys": [KEY[1]]}})
    keys = ApiKeys(principals)
    for request in (
        shown(X_API_Key=KEY[0]),
        shown(Authorization=f"Bearer {KEY[0]}"),
        shown(authorization=f"bearer  {KEY[0]}"),
        shown(X_API_Key=KEY[0], Authorization=f"Bearer {KEY[0]}"),
        shown(X_API_Key=KEY[0], Authorization="Basic x"),
    ):
        found = keys.authenticate(request)
        assert found is not None
        assert found.name == "portal"
    for nothing in (shown(), shown(Authorization="Basic x"), shown(Authorization="Bearer a.b.c")):
        assert keys.authenticate(nothing) is None
    for wrong in (
        shown(X_API_Key=""),
        shown(X_API_Key=KEY[0] + " "),
        shown(X_API_Key=[KEY[0], KEY[0]]),
        shown(Authorization=[f"Bearer {KEY[0]}", "Bearer x"]),
        shown(X_API_Key=KEY[0], Authorization="Bearer a.b.c"),
        shown(X_API_Key=KEY[1]),
        shown(Authorization="Bearer \xe9"),
    ):
        with pytest.raises(NotPermitted):
            keys.authenticate(wrong)


def test_only_the_proxy_may_name_a_user() -> None:
    """Its address may be an IPv4 address as IPv6 writes it; nobody else's header counts, and no second one."""
    principals = parse_principals({"portal": {"from_agent": "portal", "proxy_users": ["CN=portal"]}})
    proxy = TrustedProxy(principals, [ip_network("10.0.0.0/8")], "X-Client")
    for address in ("10.1.2.3", "::ffff:10.1.2.3"):
        found = proxy.authenticate(shown(address, X_Client="CN=portal"))
        assert found is not None
        assert found.from_agent == "portal"
    assert proxy.authenticate(shown("10.1.2.3")) is None
    wrong: list[tuple[str, str | list[str]]] = [
        ("192.0.2.1", "CN=portal"),
        ("a socket", "CN=portal"),
        ("10.1.2.3", "CN=other"),
        ("10.1.2.3", ["CN=portal", "CN=portal"]),
    ]
    for address, value in wrong:
        with pytest.raises(NotPermitted):
            proxy.authenticate(shown(address, X_Client=value))
    assert FirstOf([ApiKeys(principals), proxy]).authenticate(shown("10.1.2.3", X_Client="CN=portal")) is not None


def test_wrong_credentials_are_counted_by_client() -> None:
    """The count of one is bounded and does not touch others."""
    failures = Failures()
    assert [failures.note("a") for _ in range(MAX_FAILURES)] == [False] * MAX_FAILURES
    assert failures.note("a")
    assert not failures.note("b")
    for number in range(20_000):
        failures.note(str(number))
    assert len(failures._times) <= 10_000


_TEXTS = st.text(st.sampled_from('[]{}"\\x\u00e9'), max_size=6)


@settings(max_examples=60)
@given(
    st.recursive(
        st.none() | _TEXTS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
        max_leaves=8,
    )
)
def test_the_depth_of_json_is_known_without_a_parser(value: Any) -> None:
    """Whatever its texts contain."""

    def depth(part: Any) -> int:
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    assert depth_of(json.dumps(value).encode()) == depth(value)
    assert depth_of(json.dumps(value, ensure_ascii=False).encode()) == depth(value)


@pytest.mark.parametrize(
    "body",
    [b'"' + b'\\"' * 2_000_000, b'"' * 4_000_000, b"[]" * 2_000_000, b'"\\' * 2_000_000, b"[" * 4_000_000],
    ids=range(5),
)
def test_the_depth_of_hostile_json_is_known_soon(body: bytes) -> None:
    """In a time that grows with its size only: a slow computer needs some seconds, and not hours."""
    began = time.process_time()
    depth_of(body)
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.8",
        "0.0.0.0",  # noqa: S104 - an address to refuse
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fd00::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "::ffff:0:10.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001::1",
    ],
)
def test_an_address_that_is_not_public_is_known(address: str) -> None:
    """Also one that is written within an IPv6 address."""
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_a_public_address_may_be_reached(address: str) -> None:
    """By IPv4, by IPv6, and by both."""
    assert is_public(ip_address(address))


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f.1", "2130706433", "0", "::1", "169.254.169.254"])
def test_no_spelling_of_an_inner_address_is_reached(host: str) -> None:
    """The address to which it resolves counts. It is reached if its network is allowed."""
    with pytest.raises(NotPermitted, match="inner network"):
        asyncio.run(checked_address(host, 80))
    allowed = [
        ip_network("127.0.0.0/8"),
        ip_network("::1/128"),
        ip_network("0.0.0.0/8"),
        ip_network("169.254.0.0/16"),
    ]
    assert asyncio.run(checked_address(host, 80, allowed))


@pytest.mark.parametrize("wrong", [["10.0.0.1/8"], ["inner"], "10.0.0.0/8"])
def test_an_inner_network_is_declared_by_its_text(wrong: Sequence[str]) -> None:
    """A network stands as text or as such; what is none is refused where it is declared, not at the first call."""
    assert networks(["10.0.0.0/8", ip_network("::1/128")]) == (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    app = create_app("declared", broker_url="memory://")
    for declare in (
        lambda: RemoteAgent("far", "https://far.example", app, allowed_networks=wrong),
        lambda: McpAgent("tools", app, url="https://far.example/mcp", allowed_networks=wrong),
        lambda: webhook(
            Agent("notifier", app), "a", url="https://x.example", secret=SECRET, allowed_networks=wrong
        ),
    ):
        with pytest.raises(ConfigurationError, match="network"):
            declare()


def test_a_name_with_one_inner_address_is_not_reached() -> None:
    """All addresses of a name are checked, whatever their order."""

    class Loop(asyncio.SelectorEventLoop):
        async def getaddrinfo(self, *args: Any, **kwargs: Any) -> Any:
            return [(2, 1, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]

    with asyncio.Runner(loop_factory=Loop) as runner, pytest.raises(NotPermitted, match=r"10\.0\.0\.1"):
        runner.run(checked_address("two.example", 80))
    with pytest.raises(NotPermitted, match="has no address"):
        asyncio.run(checked_address("no-such-name.invalid", 80))


def test_a_redirect_leads_nowhere() -> None:
    """The client does not follow it, and checks the address anew if somebody does."""

    async def ask() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://[::1]:1/\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with server, public_client([ip_network("127.0.0.0/8")]) as client:
            assert (await client.get(url)).status_code == 302
            with pytest.raises(NotPermitted, match="inner network"):
                await client.get(url, follow_redirects=True)
        async with public_client() as client:
            with pytest.raises(NotPermitted, match="inner network"):
                await client.get(url)

    asyncio.run(ask())
    assert socket.has_ipv6


def test_a_signed_webhook_is_verified() -> None:
    """The vector of the Standard Webhooks specification; an old, a changed and an unsigned one are refused."""
    known = signed_headers(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        b'{"test": 2432232314}',
        1614265330,
    )
    assert known["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    headers = signed_headers([SECRET], "1", b"body", int(time.time()))
    verify_webhook(SECRET, {name.upper(): value for name, value in headers.items()}, b"body")
    refused: list[dict[str, str]] = [
        {},
        {**headers, "webhook-id": "2"},
        {**headers, "webhook-timestamp": str(int(time.time()) + 1)},
        {**headers, "webhook-timestamp": "1e9"},
        {**headers, "webhook-timestamp": "9" * 20},
        {**headers, "webhook-signature": headers["webhook-signature"].replace("v1,", "v2,")},
        {**headers, "webhook-signature": "v1,é"},
        signed_headers([SECRET], "1", b"body", int(time.time()) - 301),
        signed_headers([SECRET], "1", b"body", int(time.time()) + 400),
    ]
    for each in refused:
        with pytest.raises(NotPermitted):
            verify_webhook(SECRET, each, b"body")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"url": "shop.example"}, "must be a whole URL"),
        ({"url": "ftp://shop.example/"}, "must be a whole URL"),
        ({"url": "https://"}, "must be a whole URL"),
        ({"url": "https://[::1"}, "must be a whole URL"),
        ({"url": "https://shop.example:99999/"}, "must be a whole URL"),
        ({"url": 7}, "must be a whole URL"),
        ({"url": "https://ada:pw@shop.example/"}, "must not have a user"),
        ({"secret": None}, "needs one of secret= and secret_variable="),
        ({"secret_variable": "X"}, "needs one of secret= and secret_variable="),
        ({"secret": "short"}, "random bytes"),
        ({"secret": "whsec_no base64 at all, but long enough"}, "random bytes"),
        ({"secret": []}, "needs a secret"),
        ({"retries": -1}, "retries must be"),
    ],
)
def test_a_wrong_webhook_is_refused_at_once(options: dict[str, Any], expected: str) -> None:
    """When it is declared; the error does not repeat a secret."""
    agent = Agent("hooks", create_app("hooks", broker_url="redis://127.0.0.1:1"))
    given_: dict[str, Any] = {"url": "https://shop.example/", "secret": SECRET, **options}
    with pytest.raises(ConfigurationError, match=expected) as refused:
        webhook(agent, "orders.*", **given_)
    assert "no base64" not in str(refused.value)
    assert "ada" not in str(refused.value)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("99999999", MAX_RETRY_AFTER),
        ("9" * 5000, None),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 9999 07:28:00 GMT", MAX_RETRY_AFTER),
        (None, None),
    ],
)
def test_a_receiver_asks_to_wait_within_a_bound(header: str | None, seconds: float | None) -> None:
    """In seconds or until a time; nonsense is ignored."""
    assert _seconds(header) == seconds
