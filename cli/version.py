"""Versions: of this program, and of everything that heartbeats."""

from __future__ import annotations

import platform
from typing import Any

import typer

from cli.output import Format, OutputOption, show_one
from shared import __version__


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(version)


def version(output: OutputOption = Format.TABLE) -> None:
    """Show the version of this program. `shoal doctor` shows those of the whole cluster."""

    def text(row: Any) -> None:
        print(f"shoal {row['version']} (Python {row['python']})")

    row = {"name": "shoal", "version": __version__, "python": platform.python_version()}
    show_one(row, output, name="version", text=text)
