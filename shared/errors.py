"""Every error Shoal raises on purpose, in one tree.

    ShoalError
    ├── BadInput              a document or an argument is wrong: field, value, remedy
    ├── Refused               understood, but the cluster says no; the message names the next step
    ├── StoreError            something between us and the store
    │   ├── StoreUnavailable      the request had no effect or only read; try again later
    │   ├── OutcomeUnknown        a write may or may not have happened; only a compare-and-set can tell
    │   ├── Conflict              a compare-and-set lost: somebody else wrote first
    │   ├── Busy                  refused without a verdict (10164, 10008 ...): send the same again
    │   ├── Missing               the key, object or stream does not exist (the server said so)
    │   └── Unfit                 the server or a stream cannot carry Shoal; the message says what to do
    └── ExecutorError         something between an agent and its executor
        ├── ExecutorUnavailable   the engine does not answer or failed on its side; nothing is known
        └── CannotStart           this execution cannot start, with a class that says what would help

Library errors are translated where the library is imported. A bug stays what it is: it is never wrapped.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Literal


class ShoalError(Exception):
    """Base of every error raised on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an input: which field, its value (shortened), and what would be right."""

    field: str
    value: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field} is {self.value}: {self.remedy}" if self.value else f"{self.field}: {self.remedy}"


_SHOWN_CHARS_MAX = 200  # looked at of a value: it may be a megabyte, and 80 characters are shown
_REPR = reprlib.Repr()
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = 20
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _SHOWN_CHARS_MAX


def problem(field: str, value: object, remedy: str) -> Problem:
    """A `Problem` with the value shown as a person would recognise it, at most 80 characters."""
    shown = value[:_SHOWN_CHARS_MAX] if isinstance(value, str) else _REPR.repr(value)
    shown = shown.encode("utf-8", "backslashreplace").decode("utf-8")
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)
    if isinstance(value, str):
        shown = f"'{shown}'"
    return Problem(field, shown if len(shown) <= 80 else shown[:77] + "...", remedy)


class BadInput(ShoalError):
    """An input that must be changed by whoever wrote it. `problems` is never empty."""

    def __init__(self, *problems: Problem) -> None:
        assert problems, "BadInput needs at least one problem"
        super().__init__("; ".join(str(p) for p in problems))
        self.problems = problems


class Refused(ShoalError):
    """The request was understood and is refused; the message says why and what to do next."""


class StoreError(ShoalError):
    """Something between us and the store."""


class StoreUnavailable(StoreError):
    """The store did not answer, or a read failed. Nothing was changed by the request."""


class OutcomeUnknown(StoreError):
    """A write got no answer. It may have happened, may still happen, or never happen."""


class Conflict(StoreError):
    """A compare-and-set was refused. `actual` is the revision the server named, if it did."""

    def __init__(self, message: str, actual: int | None = None) -> None:
        super().__init__(message)
        self.actual = actual


class Busy(StoreError):
    """The server refused without a verdict on the expectation; the same request may be sent again."""


class Missing(StoreError):
    """The server said that the key, object or stream does not exist."""


class Unfit(StoreError):
    """The server or one of its streams cannot carry Shoal. The message says what to do."""


class ExecutorError(ShoalError):
    """Something between an agent and its executor."""


class ExecutorUnavailable(ExecutorError):
    """The engine did not answer in time or failed on its own side: nothing is known about its executions."""


class CannotStart(ExecutorError):
    """This execution cannot be started now.

    `kind` says what would help: `image` (the image cannot be had), `configuration` (a new version), `host` (the
    host must be repaired), `bundle` (the store must have it again).
    """

    def __init__(self, kind: Literal["image", "configuration", "host", "bundle"], message: str) -> None:
        super().__init__(message)
        self.kind = kind
