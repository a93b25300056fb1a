"""Which tests are part of every run, and which of the whole suite only: with WAOOAW_TEST_ALL=1."""

from __future__ import annotations

import os

import pytest

#: Whether the whole suite is wanted.
ALL = bool(os.environ.get("WAOOAW_TEST_ALL"))

#: For what takes long, and of which every run has a smaller part.
takes_long = pytest.mark.skipif(not ALL, reason="takes long: WAOOAW_TEST_ALL=1")
