"""Writes to Redis that their caller does not wait for."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from support import Broker, until

from waooaw_celery.store.connection import connect, store_url
from waooaw_celery.store.pipelined_writes import MAX_UNREAD, PipelinedWrites

KEY = "pipelined-writes"


@pytest.fixture
def client(own_broker: Broker) -> Iterator[Any]:
    with closing(connect(store_url(own_broker.url))) as client:
        client.delete(KEY)
        yield client
        client.delete(KEY)


@pytest.fixture
def writes(client: Any) -> Iterator[PipelinedWrites]:
    with closing(PipelinedWrites(client, "record that messages were sent")) as writes:
        yield writes


def test_a_read_after_settle_sees_every_write(client: Any, writes: PipelinedWrites) -> None:
    """Also when more replies are due than may be unread."""
    for number in range(3 * MAX_UNREAD):
        writes.send("HSET", KEY, str(number), "1")
    writes.settle()
    assert client.hlen(KEY) == 3 * MAX_UNREAD


def test_a_write_needs_no_later_call(client: Any, writes: PipelinedWrites) -> None:
    """The server executes it although nobody reads the reply."""
    writes.send("HSET", KEY, "one", "1")
    until(lambda: client.hget(KEY, "one") == "1", "the write")


@pytest.mark.parametrize("is_settled", [True, False])
def test_a_connection_that_the_server_has_closed_is_replaced(
    client: Any, writes: PipelinedWrites, is_settled: bool
) -> None:
    """The next write succeeds over a new connection."""
    writes.send("HSET", KEY, "first", "1")
    if is_settled:
        writes.settle()
    until(lambda: client.hget(KEY, "first") == "1", "the first write")
    client.client_kill_filter(_type="normal", skipme=True)
    writes.send("HSET", KEY, "second", "1")
    writes.settle()
    assert client.hget(KEY, "second") == "1"


def test_an_error_is_logged_when_the_reply_is_read(
    client: Any, writes: PipelinedWrites, caplog: pytest.LogCaptureFixture
) -> None:
    """It names what could not be done, and later writes succeed."""
    client.set(KEY, "no hash")
    with caplog.at_level(logging.WARNING):
        writes.send("HSET", KEY, "one", "1")
        writes.settle()
    assert "could not record that messages were sent: WRONGTYPE" in caplog.text
    client.delete(KEY)
    writes.send("HSET", KEY, "one", "1")
    writes.settle()
    assert client.hget(KEY, "one") == "1"


def test_a_forked_process_has_a_connection_of_its_own(client: Any, writes: PipelinedWrites) -> None:
    """Parent and child never read each other's replies."""
    writes.send("HSET", KEY, "parent", "1")
    child = os.fork()
    if child == 0:
        try:
            writes.send("HSET", KEY, "child", "1")
            writes.settle()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    writes.send("HSET", KEY, "parent again", "1")
    writes.settle()
    assert set(client.hkeys(KEY)) == {"parent", "child", "parent again"}


def test_threads_that_settle_at_once_read_the_replies_once(client: Any, writes: PipelinedWrites) -> None:
    """The second one finds nothing to read, and leaves the connection as it is."""
    writes.send("HSET", KEY, "one", "1")
    connection = writes._connection
    with ThreadPoolExecutor(2) as threads:
        with writes._lock:
            settled = [threads.submit(writes.settle) for _ in range(2)]
            until(lambda: threads._work_queue.empty(), "both threads")
        for each in settled:
            each.result(30)
    assert writes._connection is connection
    assert connection.is_connected


def test_a_process_that_was_forked_during_a_write_can_write(client: Any, writes: PipelinedWrites) -> None:
    """It does not wait for a lock that a thread of its parent holds."""
    with writes._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # a child that waits for the lock ends too
            status = 1
            try:
                writes.send("HSET", KEY, "child", "1")
                writes.settle()
                status = 0
            finally:
                os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.hget(KEY, "child") == "1"
