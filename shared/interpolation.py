"""Bento's environment interpolation, `${NAME}` and `${NAME:default}`, with Bento's own rules.

Bento replaces these in the text of a configuration before it reads it as YAML, so whoever wants to understand a
configuration must do the same. The rules are those of Bento's expression (internal/config/env_vars.go, 1.20.0)

    \\${[0-9A-Za-z_.]+(:((\\${[^}]+})|[^}])*)?}

found in linear time, because configurations come from strangers and the expression backtracks. `${{NAME}}` is Bento's
escape for a literal `${NAME}` and is left alone here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_OPENING = re.compile(r"\$\{(?=[0-9A-Za-z_.])")
_HEAD = re.compile(r"\$\{([0-9A-Za-z_.]+)([:}])")


class Reference(NamedTuple):
    """One `${NAME}` (`default` None) or `${NAME:default}` in a text."""

    start: int
    end: int
    name: str
    default: str | None


def references(text: str) -> Iterator[Reference]:
    """All references of a text, in order, as Bento would find them."""
    position = 0
    while (head := _HEAD.search(text, position)) is not None:
        if head[2] == "}":
            position = head.end()
            yield Reference(head.start(), position, head[1], None)
            continue
        close = _close(text, head.end())
        if close < 0:
            return  # no closing brace in all that follows
        position = close + 1
        yield Reference(head.start(), position, head[1], text[head.end() : close])


def interpolate(text: str, value: Callable[[Reference], str]) -> str:
    """The text with every reference replaced. Line breaks in values become `\\n`, as in Bento."""
    parts: list[str] = []
    position = 0
    for reference in references(text):
        parts.append(text[position : reference.start])
        parts.append(value(reference).replace("\n", "\\n"))
        position = reference.end
    parts.append(text[position:])
    return "".join(parts)


def disarm(text: str) -> str:
    """The text without references: `$ {NAME}`. For a value in a copy that Bento lints, where it would replace again."""
    return _OPENING.sub("$ {", text)


def _close(text: str, position: int) -> int:
    """Where the brace that ends a default stands: the first that closes no nested `${...}`, or else the last nested one
    (what the expression finds when it has to give one back). -1 if there is none."""
    nested = -1
    while (brace := text.find("}", position)) >= 0:
        opening = text.find("${", position, brace)
        if opening < 0 or brace == opening + 2:
            return brace
        nested, position = brace, brace + 1
    return nested
