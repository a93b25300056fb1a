"""Writes a zip file a piece at a time, with the size and the SHA-256 of each file in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile


@dataclass(frozen=True, slots=True)
class FileSum:
    """The size and the sum of a file.

    Attributes:
        size: its bytes, uncompressed.
        sha256: its SHA-256, in hexadecimal.
    """

    size: int
    sha256: str


class Archive:
    """A zip file that is being written.

    Attributes:
        files: the sums of the files that are complete, by name.
    """

    def __init__(self, zip_file: ZipFile) -> None:
        self._zip = zip_file
        self.files: dict[str, FileSum] = {}

    @contextmanager
    def file(self, name: str) -> Iterator[FileWriter]:
        """Write a file of the archive during the block. Only one file is written at a time."""
        with self._zip.open(name, "w", force_zip64=True) as out:
            writer = FileWriter(out.write)
            yield writer
        self.files[name] = FileSum(writer.size, writer.digest.hexdigest())

    def add(self, name: str, content: str) -> None:
        """Write a file as a whole."""
        with self.file(name) as out:
            out.write(content)


class FileWriter:
    """A file of an archive.

    Attributes:
        size: how many bytes it has so far.
        digest: their SHA-256.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self.size = 0
        self.digest = sha256()

    def write(self, text: str) -> None:
        """Append a text, as UTF-8."""
        data = text.encode()
        self._write(data)
        self.size += len(data)
        self.digest.update(data)


@contextmanager
def new_archive(path: Path, *, overwrite: bool) -> Iterator[Archive]:
    """Write a zip file, which has its name only when it is whole.

    It is written beside its place, readable for its owner only. If the block raises, nothing is left.

    Args:
        path: the file.
        overwrite: whether to replace a file of this name.

    Raises:
        FileExistsError: there is a file of this name.
        OSError: the file cannot be written.
    """
    if not overwrite and path.exists():
        raise FileExistsError(f"{path} exists already")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as out:
            with ZipFile(out, "w", ZIP_DEFLATED) as zip_file:
                yield Archive(zip_file)
            out.flush()
            os.fsync(out.fileno())
        if overwrite:
            part.replace(path)
        else:
            _name(part, path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def _name(part: Path, path: Path) -> None:
    """Give a file its name, unless another process has made a file of this name meanwhile."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # this file system has no links
        if path.exists():
            raise FileExistsError(f"{path} exists already") from None
        part.replace(path)
