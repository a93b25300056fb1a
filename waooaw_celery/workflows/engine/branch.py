"""Which step of a workflow's function a call is: its name, and its place among those of that name in its branch.

One counter for the whole workflow would give a step another number when branches run in another order. So each
branch of ``gather``, ``map`` and ``race`` counts by itself.
"""

from __future__ import annotations

from collections import Counter
from contextvars import ContextVar

from waooaw_celery.errors import InvalidMessage

#: Characters of a key that would make its path look like that of another step.
_RESERVED = frozenset("#/[]")
#: The longest key.
_LONGEST = 200


class Branch:
    """A part of a workflow's function whose steps follow each other.

    Args:
        prefix: what the paths of its steps begin with; empty for the function itself.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self._counts: Counter[str] = Counter()
        self._keys: set[str] = set()

    def next_path(self, name: str, key: str | None = None) -> str:
        """Return the path of the branch's next step.

        Args:
            name: name of the step.
            key: the name that the code gives to just this step, or None.

        Raises:
            InvalidMessage: the key is no valid key, or the branch has a step with this key already.
        """
        if key is None:
            name = _recordable(name)
            self._counts[name] += 1
            return f"{self.prefix}{name}#{self._counts[name]}"
        is_valid = isinstance(key, str) and 0 < len(key) <= _LONGEST and key.isprintable()
        if not is_valid or _RESERVED & set(key):
            raise InvalidMessage(
                f"the key of a step must be 1 to {_LONGEST} printable characters without #, /, [ and ], "
                f"not {key!r:.80}"
            )
        if key in self._keys:
            raise InvalidMessage(f"two steps have the key {key!r}: give each step its own")
        self._keys.add(key)
        return f"{self.prefix}{key}"

    def child(self, path: str, index: int) -> Branch:
        """Return a branch of one of this branch's steps.

        Args:
            path: the path of the ``gather``, ``map`` or ``race``.
            index: which of its branches.
        """
        return Branch(f"{path}[{index}]/")


def _recordable(name: object) -> str:
    """Return a name as a part of a path: the database must take it, also if the step fails because of it."""
    text = str(name)[:_LONGEST]
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)


#: The branch in which the running code is; the default is that of the function itself.
current_branch: ContextVar[Branch] = ContextVar("current_branch")
