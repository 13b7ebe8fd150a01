"""Frozen values without `dataclasses`, whose import alone takes as long as the runner's whole start (18 ms: inspect).

    @value
    class Listener:
        port: int
        host: str = "127.0.0.1"

A type checker sees a frozen dataclass with keyword-only fields. So does a reader: fields by name, compared by value, an
unknown or missing field is a TypeError.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar, dataclass_transform

    T = TypeVar("T")

    @dataclass_transform(frozen_default=True, kw_only_default=True)
    def value(cls: type[T]) -> type[T]:
        """Make a class a frozen value."""
        return cls

else:

    def value(cls):
        """Make a class a frozen value."""
        names = tuple(cls.__annotations__)
        defaults = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
        required = frozenset(names) - defaults.keys()

        def init(self, **fields):
            if not required <= fields.keys() <= frozenset(names):
                raise TypeError(f"{cls.__name__} has the fields {', '.join(names)}; given: {', '.join(fields)}")
            self.__dict__.update(defaults)
            self.__dict__.update(fields)

        def eq(self, other):
            return type(other) is cls and self.__dict__ == other.__dict__

        def hashed(self):
            return hash(tuple(self.__dict__[name] for name in names))

        def shown(self):
            return f"{cls.__name__}({', '.join(f'{name}={self.__dict__[name]!r}' for name in names)})"

        def refuse(_, name, __):
            raise AttributeError(f"{cls.__name__}.{name} cannot be changed: values are frozen, use replace()")

        cls.__init__, cls.__eq__, cls.__hash__, cls.__repr__, cls.__setattr__ = init, eq, hashed, shown, refuse
        return cls


def replace(old: T, **changes: Any) -> T:
    """A copy with some fields changed."""
    return type(old)(**{**old.__dict__, **changes})
