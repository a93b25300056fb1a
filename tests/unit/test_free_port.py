"""The ports of servers that tests start at the same time."""

from __future__ import annotations

import os
import socket
from itertools import pairwise

import pytest

from waooaw_celery.testing.embedded import free_port


def _ports(count: int) -> list[int]:
    return [free_port() for _ in range(count)]


def test_a_port_is_given_once() -> None:
    """A process that asks for many ports before it uses one gets different ones, and nobody listens there."""
    found = _ports(300)
    assert len(set(found)) == 300
    with socket.socket() as server:
        server.bind(("", found[-1]))


def test_processes_with_neighbouring_ids_begin_far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of thirty processes meets another before it has had a hundred ports."""
    begun = []
    for pid in range(4321, 4351):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        begun.append(free_port())
    ordered = sorted(begun)
    assert min(after - before for before, after in pairwise(ordered)) > 100
