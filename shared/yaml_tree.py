"""Reading YAML of strangers into plain values: bounded in depth and nodes, with the line of every field.

Two readers use it: `configuration`, which only looks things up in a Bento configuration, and `manifest`, which wants
texts as they were written and lines for its errors. What PyYAML's constructors do on top (dates, tags, recursion) is
what makes them raise anything on hostile input, so only its event stream is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from shared.errors import BadInput, problem

DEPTH_MAX = 200  # of nesting; Bento configurations of people stay below 40
NODES_MAX = 100_000  # values in one document, merged keys counted; far above what an 8 MiB configuration of people has

_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where the wheel brings it: 10 times faster
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]{1,18}\.[0-9]{0,18}|\.[0-9]{1,18}|[0-9]{1,18}(?=e))(?:e[-+]?[0-9]{1,2})?", re.IGNORECASE
)
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(slots=True, eq=False)
class Scalar:
    """A text, and whether it was written without quotes, so that `1` may be a number."""

    text: str
    plain: bool
    line: int
    size: int = 1
    height: int = 0


@dataclass(slots=True, eq=False)
class Sequence:
    """A list."""

    line: int
    items: list[Node] = field(default_factory=list)
    size: int = 0  # nodes in it, aliases counted as what they stand for; 0 while it is being read
    height: int = 0  # levels below it, through aliases as well


@dataclass(slots=True, eq=False)
class Table:
    """A mapping. Keys that are no scalars are dropped: Bento has none. The last one of equal keys counts."""

    line: int
    items: dict[str, Node] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)  # of the keys
    size: int = 0
    height: int = 0


Node = Scalar | Sequence | Table


def read_documents(text: str, name: str, *, documents_max: int) -> list[Node]:
    """The documents of a YAML text, at most `documents_max`; what follows them is not looked at (as Bento does with all
    but the first). BadInput(`name`, ...) names the line."""
    loader = _LOADER(text)
    try:
        return _Reader(loader, name).documents(documents_max)
    except yaml.YAMLError as error:
        raise BadInput(problem(_place(name, error), "not YAML", _complaint(error))) from error
    finally:
        loader.dispose()


def plain(node: Node) -> Any:
    """The node as dicts, lists and scalars; never larger or deeper than the limits, so it may be walked, shown and
    encoded without care."""
    if isinstance(node, Scalar):
        return scalar(node)
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return {key: plain(value) for key, value in node.items.items()}


def scalar(node: Scalar) -> str | int | float | bool | None:
    """The value of a scalar as YAML 1.2 (and Bento) reads it; what is beyond a machine number stays text."""
    if not node.plain:
        return node.text
    if node.text in _WORDS:
        return _WORDS[node.text]
    if _INTEGER.fullmatch(node.text):
        return int(node.text)
    if _FLOAT.fullmatch(node.text):
        return float(node.text)
    return node.text


class _Reader:
    """Builds nodes from parser events; recursive, but never deeper than DEPTH_MAX.

    An alias counts as many nodes and levels as its anchor has. That is the whole defence against aliases that multiply:
    whatever is built here is as small as it would be without them.
    """

    def __init__(self, loader: Any, name: str) -> None:
        self._loader = loader
        self._name = name
        self._anchors: dict[str, Node] = {}
        self._count = 0

    def documents(self, documents_max: int) -> list[Node]:
        found: list[Node] = []
        while len(found) < documents_max and self._loader.check_event():
            event = self._loader.get_event()
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors.clear()
                found.append(self._node(self._loader.get_event(), 0))
        return found

    def _node(self, event: Any, depth: int) -> Node:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            node = self._alias(str(event.anchor), line)
            self._check(line, depth + node.height, node.size)
            return node
        self._check(line, depth, 1)
        if isinstance(event, yaml.ScalarEvent):
            written = Scalar(event.value, not event.style and event.tag is None, line)
            self._remember(event.anchor, written)
            return written
        if isinstance(event, yaml.SequenceStartEvent):
            sequence = Sequence(line)
            self._remember(event.anchor, sequence)
            while not isinstance(following := self._loader.get_event(), yaml.SequenceEndEvent):
                sequence.items.append(self._node(following, depth + 1))
            _measure(sequence, sequence.items)
            return sequence
        table = Table(line)
        self._remember(event.anchor, table)
        while not isinstance(following := self._loader.get_event(), yaml.MappingEndEvent):
            self._pair(table, following, depth)
        _measure(table, table.items.values())
        return table

    def _pair(self, table: Table, event: Any, depth: int) -> None:
        key = self._node(event, depth + 1)
        value = self._node(self._loader.get_event(), depth + 1)
        if not isinstance(key, Scalar):
            return
        if key.text == "<<" and key.plain and not isinstance(value, Scalar):
            for merged in value.items if isinstance(value, Sequence) else [value]:
                if isinstance(merged, Table):
                    self._check(key.line, 0, merged.size)
                    table.items = {**merged.items, **table.items}
                    table.lines = {**merged.lines, **table.lines}
            return
        table.items[key.text] = value
        table.lines[key.text] = key.line

    def _alias(self, anchor: str, line: int) -> Node:
        node = self._anchors.get(anchor)
        if node is None:
            raise self._bad(line, f"*{anchor}", "this alias has no anchor before it")
        if node.size == 0:
            raise self._bad(line, f"*{anchor}", "an alias must not stand inside its own anchor")
        return node

    def _remember(self, anchor: str | None, node: Node) -> None:
        if anchor is not None:
            self._anchors[anchor] = node

    def _check(self, line: int, depth: int, nodes: int) -> None:
        self._count += nodes
        if depth > DEPTH_MAX:
            raise self._bad(line, "nested too deeply", f"nest at most {DEPTH_MAX} levels")
        if self._count > NODES_MAX:
            raise self._bad(line, f"more than {NODES_MAX} values", "put large data into files of their own")

    def _bad(self, line: int, value: str, remedy: str) -> BadInput:
        return BadInput(problem(f"{self._name} line {line}", value, remedy))


def _measure(node: Sequence | Table, children: Iterable[Node]) -> None:
    node.size, node.height = 1, 0
    for child in children:
        node.size += child.size
        node.height = max(node.height, child.height + 1)


def _place(name: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{name} line {mark.line + 1}" if mark is not None else name


def _complaint(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        context = f"{error.context}: " if error.context else ""
        return f"correct the YAML ({context}{error.problem})"
    reason = getattr(error, "reason", None)
    return f"correct the YAML ({reason})" if isinstance(reason, str) else "correct the YAML"
