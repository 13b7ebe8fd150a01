"""How results are shown: tables for people; JSON, YAML, wide tables and names for programs and pipes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

Row = Mapping[str, Any]


class Format(StrEnum):
    """Output formats of every command that shows something."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


OutputOption = Annotated[Format, typer.Option("--output", "-o", help="How to show it.", case_sensitive=False)]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table. `wide`: only shown with `-o wide`. `style` maps a cell's text to a colour."""

    title: str
    value: Callable[[Row], object]
    wide: bool = False
    style: Callable[[str], str] | None = None


STATE_COLOURS = {
    "running": "green",
    "ready": "green",
    "alive": "green",
    "ok": "green",
    "starting": "yellow",
    "updating": "yellow",
    "fetching": "yellow",
    "pausing": "yellow",
    "stopping": "yellow",
    "removing": "yellow",
    "waiting": "yellow",
    "backoff": "red",
    "failing": "red",
    "failed": "red",
    "refused": "red",
    "lost": "red",
    "silent": "red",
    "bad": "red",
}


def state_colour(state: str) -> str:
    """The colour of a state, "" for none."""
    return STATE_COLOURS.get(state, "")


def show_rows(rows: Sequence[Row], columns: Sequence[Column], output: Format, *, name: str, empty: str) -> None:
    """Print many things. `name` is the key that `-o name` prints; `empty` the sentence when there is nothing."""
    match output:
        case Format.JSON:
            print(json.dumps(list(rows), indent=2, ensure_ascii=False, default=str))
        case Format.YAML:
            print(_yaml(list(rows)), end="")
        case Format.NAME:
            for row in rows:
                print(row[name])
        case Format.TABLE | Format.WIDE:
            if rows:
                _table(rows, [c for c in columns if output is Format.WIDE or not c.wide])
            else:
                note(empty)


def show_one(row: Row, output: Format, *, name: str, text: Callable[[Row], None]) -> None:
    """Print one thing; `text` prints it for people."""
    match output:
        case Format.JSON:
            print(json.dumps(row, indent=2, ensure_ascii=False, default=str))
        case Format.YAML:
            print(_yaml(row), end="")
        case Format.NAME:
            print(row[name])
        case Format.TABLE | Format.WIDE:
            text(row)


def note(message: str) -> None:
    """A sentence for people, on standard error: results on standard output stay clean."""
    print(message, file=sys.stderr)


def memory_text(count: int) -> str:
    """Bytes as people write them."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _yaml(value: object) -> str:
    import yaml

    plain = json.loads(json.dumps(value, default=str))
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False, padding=(0, 2, 0, 0))
    last = columns[-1].title
    for column in columns:
        table.add_column(column.title, no_wrap=column.title != last, overflow="fold")
    for row in rows:
        cells = []
        for column in columns:
            text = str(column.value(row))
            cells.append(Text(text, style=column.style(text) if column.style else ""))
        table.add_row(*cells)
    console = Console(highlight=False)
    if not console.is_terminal:
        # In a pipe nothing is cut or folded, whatever width the other side may have.
        console = Console(highlight=False, width=10_000, no_color=True)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())
