"""Network failures between a consumer and its Redis server, TLS, and a server that is too old."""

from __future__ import annotations

import shutil
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import trustme
from kombu.exceptions import VersionMismatch
from plain_workers import plant
from proxy import Proxy, proxied
from redis.exceptions import ConnectionError as RedisConnectionError
from redis_channels import Broker, Reader, new_queue, queue_items, send
from support import until

from waooaw_celery.broker.redis.scripts import CLAIM, PUBLISH
from waooaw_celery.testing.embedded import free_port, running, valkey

TIMEOUTS = {"socket_timeout": 3.0, "socket_connect_timeout": 2.0}
#: Short leases: the messages of a lost reply come back soon.
SHORT_LEASES = TIMEOUTS | {"visibility_timeout": 2, "unacked_restore_interval": 0.5}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of a server that only these tests use."""
    with valkey() as url:
        yield url


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    """A proxy in front of the server."""
    with proxied(url) as proxy:
        yield proxy


@pytest.fixture
def broker(url: str, proxy: Proxy) -> Iterator[Broker]:
    """The server itself, to publish and to inspect; closed before the proxy."""
    broker = Broker(url)
    yield broker
    broker.close()


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_idle_worker_replaces_a_half_open_connection(url: str, proxy: Proxy, tmp_path: Path, pool: str) -> None:
    """An idle worker replaces a connection that went dead without an event, and loses nothing."""
    with plant(url, tmp_path, transport_options=SHORT_LEASES) as made:
        made.start("-P", pool, env={"CELERY_BROKER_URL": proxy.url})
        for number in range(2):
            made.send(number)
            made.wait(number)
            proxy.freeze()
        frozen_at = time.monotonic()
        made.send("after")
        made.wait("after")
        assert time.monotonic() - frozen_at < 10
        until(lambda: (made.waiting(), made.held()) == ([], 0), "acknowledging")
        assert set(made.labels()) == {0, 1, "after"}


@pytest.mark.slow
def test_connections_that_die_under_load_lose_nothing(url: str, proxy: Proxy, tmp_path: Path) -> None:
    """Connections die twice while messages are handled: each message is handled and acknowledged."""
    with plant(url, tmp_path, transport_options=SHORT_LEASES) as made:
        labels = list(range(60))
        for label in labels:
            made.send(label, 0.05)
        made.start("-P", "threads", "-c", "2", env={"CELERY_BROKER_URL": proxy.url})
        for bound in (10, 30):
            until(lambda bound=bound: len(set(made.labels())) > bound, "some of them")  # type: ignore[misc]
            proxy.freeze()
        until(lambda: set(made.labels()) == set(labels), "all of them")
        until(lambda: (made.waiting(), made.held()) == ([], 0), "acknowledging")


@pytest.mark.slow
def test_consumer_without_event_loop_replaces_a_half_open_connection(broker: Broker, proxy: Proxy) -> None:
    """A consumer without an event loop replaces a dead connection too."""
    queue = new_queue()
    reader = Reader(broker.connect(url=proxy.url, **SHORT_LEASES), queue, prefetch=1)
    reader.drain(0.3)
    proxy.freeze()
    send(broker.connect(), queue, "after")
    assert reader.take(1, 10) == ["after"]


def test_messages_of_a_lost_claim_reply_are_redelivered(broker: Broker, proxy: Proxy) -> None:
    """If the reply to a claim is lost, its messages are redelivered, as if the consumer had died."""
    queue = new_queue()
    reader = Reader(broker.connect(url=proxy.url, **SHORT_LEASES), queue, prefetch=3)
    reader.drain(0.3)
    proxy.lose_answer(CLAIM.digest.encode())  # not one of the thread that renews the leases
    send(broker.connect(), queue, *range(3))
    with pytest.raises(RedisConnectionError):
        reader.take(3)
    assert proxy.lost.is_set()
    assert (broker.unacked_count(), queue_items(broker, queue)) == (3, [])
    assert sorted(reader.take(3)) == [0, 1, 2]
    assert reader.redelivered == [True] * 3


def test_publish_is_repeated_after_a_lost_reply(broker: Broker, proxy: Proxy) -> None:
    """Both copies arrive, and acknowledging one does not acknowledge the other."""
    queue, connection = new_queue(), broker.connect(url=proxy.url, **TIMEOUTS)
    connection.ensure_connection()
    proxy.lose_answer(PUBLISH.digest.encode())
    send(connection, queue, "twice", retry=True, retry_policy={"max_retries": 2})
    assert proxy.lost.is_set()
    reader = Reader(broker.connect(), queue)
    assert reader.take(2) == ["twice", "twice"]
    reader.messages[0].ack()
    assert broker.unacked_count() == 1
    reader.messages[1].ack()
    assert broker.unacked_count() == 0


@pytest.mark.slow
def test_slow_connection_is_not_closed(broker: Broker, proxy: Proxy) -> None:
    """With half a second for each round trip no connection is closed, and no message is delivered twice."""
    queue = new_queue()
    send(broker.connect(), queue, *range(10))
    proxy.delay(0.25)
    reader = Reader(broker.connect(url=proxy.url, **SHORT_LEASES | {"visibility_timeout": 6}), queue)
    assert reader.take(10) == list(range(10))
    for message in reader.messages:
        message.ack()
    assert reader.drain(1.0) == list(range(10))
    assert (broker.unacked_count(), queue_items(broker, queue)) == (0, [])


@pytest.fixture(params=["terminated by a proxy", "a server with TLS"])
def tls_server(request: pytest.FixtureRequest, url: str, tmp_path: Path) -> Iterator[tuple[str, str, str]]:
    """A TLS URL of a server, its URL without TLS, and the file of the authority that signed its certificate."""
    authority, files = trustme.CA(), [tmp_path / name for name in ("authority", "certificate", "key")]
    signed = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(files[0]))
    signed.cert_chain_pems[0].write_to_path(str(files[1]))
    signed.private_key_pem.write_to_path(str(files[2]))
    with ExitStack() as stack:
        if request.param == "a server with TLS":
            plain, port = server_with_tls(stack, tmp_path, *map(str, files))
        else:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            signed.configure_cert(context)
            plain, port = url, stack.enter_context(proxied(url, context)).port
        yield f"rediss://127.0.0.1:{port}/0", plain, str(files[0])


def server_with_tls(stack: ExitStack, folder: Path, authority: str, certificate: str, key: str) -> tuple[str, int]:
    """Run the installed server if it supports TLS: that of the wheel does not."""
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        pytest.skip("neither valkey-server nor redis-server is installed")
    path, port = folder / "s", free_port()
    command = [program, "--port", "0", "--tls-port", str(port), "--unixsocket", str(path), "--dir", str(folder)]
    command += ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", authority]
    command += ["--tls-auth-clients", "no", "--save", "", "--bind", "127.0.0.1"]
    log = folder / "log"
    server = stack.enter_context(running(command, log=log))
    until(lambda: path.exists() or server.poll() is not None, "the server")
    if server.poll() is not None:
        pytest.skip(f"{program} cannot do TLS: {log.read_text()[-200:]}")
    return f"redis+socket://{path}", port


@pytest.mark.parametrize("how", ["in the URL", "by a setting"])
def test_messages_travel_over_tls(tls_server: tuple[str, str, str], how: str) -> None:
    """Publishing, batches, claims and acknowledgements use a verified TLS connection."""
    tls_url, plain, authority = tls_server
    options: dict[str, Any] = {}
    if how == "in the URL":
        tls_url += f"?ssl_cert_reqs=required&ssl_ca_certs={authority}"
    else:
        options = {"ssl": {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": authority}}
    broker, queue = Broker(plain), new_queue()
    with closing(broker):
        sender = broker.connect(url=tls_url, tls=options.get("ssl"))
        send(sender, queue, "one by one")
        with sender.channel() as channel:
            producer = sender.Producer(channel)
            with producer.batch(max_size=10):
                producer.publish("together", routing_key=queue.name, exchange="")
        reader = Reader(broker.connect(url=tls_url, tls=options.get("ssl")), queue, prefetch=1)
        for number in range(2):
            reader.take(number + 1)
            reader.messages[number].ack()
        assert reader.bodies == ["one by one", "together"]
        send(sender, queue, "after a bell")
        assert reader.take(3)[-1] == "after a bell"
        reader.messages[2].ack()
        assert (broker.unacked_count(), queue_items(broker, queue)) == (0, [])


def test_certificate_of_an_unknown_authority_is_refused(tls_server: tuple[str, str, str]) -> None:
    """There is no connection to a server with an untrusted certificate, and the error says why."""
    tls_url, plain, _ = tls_server
    broker = Broker(plain)
    with closing(broker), pytest.raises(RedisConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        send(broker.connect(url=f"{tls_url}?ssl_cert_reqs=required"), new_queue(), "secret")


def test_worker_consumes_over_tls(tls_server: tuple[str, str, str], tmp_path: Path) -> None:
    """A worker consumes over TLS."""
    tls_url, plain, authority = tls_server
    with plant(plain, tmp_path, transport_options=TIMEOUTS) as made:
        secured = f"{tls_url}?ssl_cert_reqs=required&ssl_ca_certs={authority}"
        made.start(env={"CELERY_BROKER_URL": secured})
        for number in range(20):
            made.send(number)
        made.wait(19)
        assert made.labels() == list(range(20))
        until(lambda: made.held() == 0, "acknowledging")


class Redis6Server(socketserver.StreamRequestHandler):
    """A server that does not know scripts that begin with ``#!lua``."""

    def handle(self) -> None:
        """Answer as Redis 6 does."""
        while line := self.rfile.readline():
            parts = []
            for _ in range(int(line[1:])):
                size = int(self.rfile.readline()[1:])
                parts.append(self.rfile.read(size + 2)[:-2].upper())
            self.wfile.write(self._answer(parts))

    @staticmethod
    def _answer(parts: list[bytes]) -> bytes:
        if parts[0] == b"HELLO":
            return b"%2\r\n+version\r\n+6.2.14\r\n+proto\r\n:3\r\n"
        if parts[0] == b"SCRIPT":
            return b"-ERR Error compiling script (new function): user_script:1: unexpected symbol near '#'\r\n"
        return b"+PONG\r\n" if parts[0] == b"PING" else b"+OK\r\n"


@pytest.fixture
def redis_6() -> Iterator[str]:
    """The URL of such a server."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Redis6Server) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()


def test_redis_6_is_refused(redis_6: str) -> None:
    """The error names the server that is needed, or the setting, and no connection stays open."""
    broker = Broker(redis_6)
    connection = broker.connect()
    with pytest.raises(VersionMismatch, match=r"Redis 7.*waooaw_redis_transport='kombu'"):
        connection.ensure_connection()
    assert not connection.transport.channels
    assert not connection.transport._avail_channels
    broker.close()
