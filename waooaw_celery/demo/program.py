"""How to type the program `waooaw` in the shell that started this process."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """Return the program as you can type it: ``waooaw`` if it is on PATH, otherwise with its folder."""
    started_as = Path(sys.argv[0])
    if started_as.name == "waooaw":
        found = shutil.which("waooaw")
        return "waooaw" if found is not None and Path(found) == started_as else shlex.quote(str(started_as))
    # Started as `python -m waooaw_celery`, for example by dev.py, which also changes PATH for this process only.
    script = Path(sys.executable).with_name("waooaw")
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m waooaw_celery"
    folder = Path.cwd()
    return shlex.quote(str(script.relative_to(folder) if script.is_relative_to(folder) else script))
