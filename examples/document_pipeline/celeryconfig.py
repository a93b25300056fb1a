"""The configuration of the pipeline: how large a message may be."""

from __future__ import annotations

waooaw_max_body_bytes = 32 * 1024 * 1024
waooaw_max_expanded_bytes = 32 * 1024 * 1024
