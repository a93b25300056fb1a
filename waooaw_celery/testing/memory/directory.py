"""The agents as a test knows them: always the newest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from waooaw_celery.discovery.cache import DirectoryCache
from waooaw_celery.discovery.snapshot import Snapshot


class FreshDirectory(DirectoryCache):
    """A directory that is read for each use: an agent that a test has just added is found, and no thread reads.

    Args:
        open_registry, read_waiting: as for ``DirectoryCache``.
        renew: declares the agents that were added.
    """

    def __init__(
        self,
        open_registry: Callable[[], Any],
        read_waiting: Callable[[Sequence[str]], Mapping[str, int]],
        renew: Callable[[], None],
    ) -> None:
        super().__init__(open_registry, read_waiting)
        self._renew = renew

    def snapshot(self) -> Snapshot:
        """Return the agents as they are now."""
        self._renew()
        return self.refresh()

    def need_loads(self, names: tuple[str, ...]) -> None:
        """Read how many messages wait now."""
        self._loads_at = float("-inf")
        super().need_loads(names)


class FreshRegistry:
    """The registry of an application, which knows the agents that a test has just added.

    Args:
        registry: the registry.
        renew: declares the agents that were added.
    """

    def __init__(self, registry: Any, renew: Callable[[], None]) -> None:
        self._registry, self._renew = registry, renew

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the registry, after the agents were declared."""
        self._renew()
        return getattr(self._registry, name)

    def close(self) -> None:
        """Close the registry."""
        self._registry.close()
