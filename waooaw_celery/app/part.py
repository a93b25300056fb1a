"""The attributes of an application that are its components."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class Part(Generic[T]):
    """An attribute of an application that is a part of its components."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, app: None, owner: type) -> Part[T]: ...
    @overload
    def __get__(self, app: Any, owner: type) -> T: ...
    def __get__(self, app: Any | None, owner: type) -> Part[T] | T:
        if app is None:
            return self
        part: T = getattr(app.components, self._name)
        return part
