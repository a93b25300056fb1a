"""The scripts that run inside the Redis server, each in a file of its own in ``lua/``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError


class Script:
    """A script, called by its digest; a server that does not know it yet is given its text.

    Args:
        name: of its file, without ``.lua``.
    """

    def __init__(self, name: str) -> None:
        self.text = files(__package__).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: Any, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run it and return its answer.

        Args:
            client: a Redis client.
            keys: what the script calls KEYS.
            args: what it calls ARGV.

        Raises:
            RedisError: the server cannot be reached or refuses.
        """
        try:
            return client.evalsha(self.digest, len(keys), *keys, *args)
        except NoScriptError:
            return client.eval(self.text, len(keys), *keys, *args)

    def command(self, keys: Sequence[str], args: Sequence[Any], *, known: bool = True) -> list[Any]:
        """Return the command that runs it, for a connection or a pipeline.

        Args:
            keys: what the script calls KEYS.
            args: what it calls ARGV.
            known: whether the server knows it already.
        """
        return ["EVALSHA" if known else "EVAL", self.digest if known else self.text, len(keys), *keys, *args]


PUBLISH = Script("publish")
RING = Script("ring")
CLAIM = Script("claim")
TOUCH = Script("touch")
OVERDUE = Script("overdue")
RESTORE = Script("restore")
PARK = Script("park")
