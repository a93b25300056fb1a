"""Whether the output has colours: ``NO_COLOR`` and ``FORCE_COLOR``, as rich reads them."""

from __future__ import annotations

import os


def color_of_environment() -> bool | None:
    """Return whether to print colours: False with ``NO_COLOR``, True with ``FORCE_COLOR``, otherwise None.

    None means: on a terminal only. An empty variable counts as not set. ``NO_COLOR`` wins over ``FORCE_COLOR``.
    """
    if os.environ.get("NO_COLOR"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None
