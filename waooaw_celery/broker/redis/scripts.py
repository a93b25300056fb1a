"""The scripts that run inside the Redis server. Each has its own file in ``lua/``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError


class Script:
    """A script that is called by its digest. A server that does not have it yet receives its text.

    Args:
        name: The script's file name without ``.lua``.
    """

    def __init__(self, name: str) -> None:
        self.text = files(__package__).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: Any, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run the script and return its reply.

        Args:
            client: The Redis client to use.
            keys: The script's KEYS.
            args: The script's ARGV.

        Raises:
            RedisError: The server cannot be reached or refuses the call.
        """
        try:
            return client.evalsha(self.digest, len(keys), *keys, *args)
        except NoScriptError:
            return client.eval(self.text, len(keys), *keys, *args)

    def command(self, keys: Sequence[str], args: Sequence[Any], *, is_loaded: bool = True) -> list[Any]:
        """Return the command that runs the script, for a connection or a pipeline.

        Args:
            keys: The script's KEYS.
            args: The script's ARGV.
            is_loaded: Whether the server already has the script.
        """
        script = ["EVALSHA", self.digest] if is_loaded else ["EVAL", self.text]
        return [*script, len(keys), *keys, *args]


PUBLISH = Script("publish")
RING = Script("ring")
CLAIM = Script("claim")
TOUCH = Script("touch")
OVERDUE = Script("overdue")
RESTORE = Script("restore")
DEAD_LETTER = Script("dead_letter")
