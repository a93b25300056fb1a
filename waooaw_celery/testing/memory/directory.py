"""The agents as a test knows them: always the newest."""

from __future__ import annotations

from waooaw_celery.discovery.cache import DirectoryCache
from waooaw_celery.discovery.snapshot import Snapshot


class FreshDirectory(DirectoryCache):
    """A directory that is read for each use: an agent that a test has just added is found, and no thread reads."""

    def snapshot(self) -> Snapshot:
        """Return the agents as they are now."""
        return self.refresh()

    def need_loads(self, names: tuple[str, ...]) -> None:
        """Read how many messages wait now."""
        self._loads_at = float("-inf")
        super().need_loads(names)
