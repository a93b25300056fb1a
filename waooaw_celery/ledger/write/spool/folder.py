"""The folder of the spool: the default one, and the error that says why a folder cannot be used."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from pathlib import Path

from waooaw_celery.errors import ConfigurationError

_REMEDY = (
    "Set waooaw_spool_folder (or WAOOAW_SPOOL_FOLDER) to a folder of this user that can be written and has room, "
    "such as a volume of the container"
)


def default_folder() -> Path:
    """Return the folder of this user in the system's temporary folder.

    Raises:
        ConfigurationError: no temporary folder can be written; the text says why.
    """
    try:
        return Path(tempfile.gettempdir()) / f"waooaw-spool-{os.getuid()}"
    except FileNotFoundError as error:  # Python has tried several folders, and does not say what was wrong
        folder = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - the first one that Python tries
        raise unusable_folder(Path(folder), _error_of(folder) or error) from error


def unusable_folder(folder: Path, error: Exception) -> ConfigurationError:
    """Return the error of a folder that the spool cannot use.

    Args:
        folder: the folder.
        error: what was raised when it was used.
    """
    return ConfigurationError(f"the spool cannot be used: {folder}: {_reason(error)}. {_REMEDY}")


def _error_of(folder: str) -> OSError | None:
    """Return the error of writing to a folder, or None if that works."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return error
    return None


def _reason(error: BaseException) -> str:
    """Return the reason that the operating system or SQLite gives."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno in errno.errorcode:
            return f"{cause.strerror} ({errno.errorcode[cause.errno]})"
        if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return f"{os.strerror(errno.ENOSPC)} (ENOSPC)"
        cause = cause.__cause__
    return str(error)
