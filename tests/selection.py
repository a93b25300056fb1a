"""Which tests are part of every run, and which of the whole suite only: with WAOOAW_TEST_ALL=1."""

from __future__ import annotations

import os

import pytest

#: Whether the whole suite is wanted.
ALL = bool(os.environ.get("WAOOAW_TEST_ALL"))

#: For what takes long and shows, of another pool, broker or kind of ledger, what a test of every run shows of one.
takes_long = pytest.mark.skipif(not ALL, reason="takes long: WAOOAW_TEST_ALL=1")
