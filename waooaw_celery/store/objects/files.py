"""Large payloads as files: in a folder, in S3, in Google Cloud Storage and wherever else fsspec reaches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from waooaw_celery.errors import ConfigurationError, PayloadMissing, ReferenceStoreUnavailable
from waooaw_celery.messages.references.reference import is_key
from waooaw_celery.messages.urls import shown_url
from waooaw_celery.store.objects.object_store import NewObject, Purged, kept_until


class FileStore:
    """Large payloads as files of a file system of fsspec.

    Without a ledger it knows no messages: a payload is kept until the day that its key names.

    Args:
        url: such as ``file:///srv/payloads``, ``s3://bucket/payloads`` or ``gs://bucket/payloads``. Credentials
            and time-outs are fsspec's own configuration.

    Raises:
        ConfigurationError: fsspec is not installed, or knows no such file system.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            import fsspec.core
        except ImportError:
            raise ConfigurationError(
                "waooaw_reference_store needs fsspec: pip install 'waooaw-celery[fsspec]', and for S3 or Google "
                "Cloud Storage also s3fs or gcsfs"
            ) from None
        self._url_to_fs: Any = fsspec.core.url_to_fs
        try:
            self._open()
        except (ImportError, ValueError) as error:
            raise ConfigurationError(
                f"waooaw_reference_store = {shown_url(url)} cannot be opened: {error}"
            ) from error

    def put(self, objects: Sequence[NewObject], session: Any = None) -> None:
        """Store payloads. See ``ObjectStore.put``."""
        with self._errors("store a payload"):
            files, root = self._open()
            for each in objects:
                path = f"{root}/{each.key}"
                if "file" in _protocols(files):  # the others have no folders that must exist
                    files.makedirs(path.rpartition("/")[0], exist_ok=True)
                files.pipe_file(path, each.data)

    def share(self, key: str, message_ids: Sequence[str], session: Any = None) -> None:
        """Check that a payload is there. See ``ObjectStore.share``."""
        with self._errors("look for a payload"):
            files, root = self._open()
            if files.exists(f"{root}/{key}"):
                return
        raise self._missing(key)

    def get(self, key: str) -> bytes:
        """Return a payload. See ``ObjectStore.get``."""
        with self._errors("read a payload"):
            files, root = self._open()
            try:
                data: bytes = files.cat_file(f"{root}/{key}")
            except FileNotFoundError:
                raise self._missing(key) from None
            return data

    def delete(self, keys: Sequence[str]) -> None:
        """Delete payloads; those that are gone already are left out."""
        with self._errors("delete payloads"):
            files, root = self._open()
            for key in keys:
                try:
                    files.rm_file(f"{root}/{key}")
                except FileNotFoundError:
                    continue

    def stored(self) -> Iterator[tuple[str, int]]:
        """Yield the key and the size in bytes of each payload, and of nothing else in the folder."""
        with self._errors("list the payloads"):
            files, root = self._open()
            files.invalidate_cache()
            try:
                found = files.find(root, detail=True)
            except FileNotFoundError:
                return
        for path, facts in found.items():
            key = "/".join(path.split("/")[-2:])
            if is_key(key):
                yield key, int(facts.get("size") or 0)

    def purge(self) -> Purged:
        """Delete the payloads whose day is over. See ``ObjectStore.purge``."""
        today = datetime.now(UTC).date()
        over = [(key, size) for key, size in self.stored() if kept_until(key) < today]
        self.delete([key for key, _ in over])
        return Purged(objects=len(over), size=sum(size for _, size in over))

    def _open(self) -> tuple[Any, str]:
        """Return the file system and the folder. fsspec keeps one for each process and thread."""
        files, root = self._url_to_fs(self._url)
        return files, str(root).rstrip("/")

    def _missing(self, key: str) -> PayloadMissing:
        return PayloadMissing(
            f"the payload {key} is not in {shown_url(self._url)}: put it back, and retry the message"
        )

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except PayloadMissing:
            raise
        except Exception as error:  # each file system has errors of its own
            raise ReferenceStoreUnavailable(
                f"could not {what} in {shown_url(self._url)}: {error!r:.200}"
            ) from error


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)
