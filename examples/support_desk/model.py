"""The language model behind an interface: the desk does not know which one it uses."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Protocol


class LanguageModel(Protocol):
    """Anything that continues a text."""

    def complete(self, prompt: str) -> str:
        """Return the answer to a prompt."""


class KeywordModel:
    """A model without a model: it looks for words. Its answers are always the same, so tests can rely on them."""

    WORDS = (("invoice", "billing"), ("refund", "billing"), ("crash", "technical"), ("error", "technical"))

    def complete(self, prompt: str) -> str:
        """Return the topic of the first word that is found in the last line of the prompt, or ``unknown``."""
        text = prompt.splitlines()[-1].lower()
        return next((topic for word, topic in self.WORDS if word in text), "unknown")


def configured() -> LanguageModel:
    """Return the model that ``DESK_MODEL`` names, such as ``my_module:MyModel``; without it, a KeywordModel."""
    module, _, name = os.environ.get("DESK_MODEL", "model:KeywordModel").partition(":")
    model: LanguageModel = getattr(import_module(module), name)()
    return model
