"""Messages of one key are handled in order, and those of one sender hold up no others: with real workers."""

from __future__ import annotations
