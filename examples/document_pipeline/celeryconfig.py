"""The configuration of the pipeline: what is large, and how large a message may be."""

from __future__ import annotations

#: A document above this size is kept in the ledger's database; its message carries a reference.
waooaw_reference_above = 256 * 1024
waooaw_max_body_bytes = 32 * 1024 * 1024
waooaw_max_expanded_bytes = 32 * 1024 * 1024
