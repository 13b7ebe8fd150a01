"""Events: what happened, and why."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Annotated, Any

import typer

from cli.cluster import Cluster, run
from cli.output import Column, Format, OutputOption, show_rows
from shared.documents import Event, decode
from shared.errors import BadInput, Missing
from shared.ids import check_id
from shared.store import Message

COLUMNS = (
    Column("TIME", lambda r: r["at"]),
    Column("KIND", lambda r: r["kind"]),
    Column("SUBJECT", lambda r: r["subject"]),
    Column("PLAN", lambda r: r["plan"], wide=True),
    Column("TERM", lambda r: r["term"], wide=True),
    Column("WHAT", lambda r: r["message"]),
)


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(events)


def events(
    context: typer.Context,
    subject: Annotated[str | None, typer.Argument(metavar="ID|HOST", help="Only those about this one.")] = None,
    output: OutputOption = Format.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing new ones.")] = False,
    last: Annotated[int, typer.Option("--last", min=0, help="How many of the past.")] = 100,
) -> None:
    """Show what happened, oldest first, and why.

    `-o wide` also shows by which term and plan it was decided.
    """

    if subject is not None:
        check_id(subject, "ID|HOST")

    async def command(cluster: Cluster) -> None:
        pattern = cluster.keys.event("*", subject or "*")
        rows: list[dict[str, Any]] = []
        try:
            async with aclosing(  # type: ignore[type-var]
                cluster.store.history(cluster.keys.events, pattern, last=last, follow=watch)
            ) as found:
                async for message in found:
                    row = _row(message)
                    if row is None:
                        continue
                    if watch:
                        _show_line(row, output)
                    else:
                        rows.append(row)
        except Missing as error:
            raise cluster.absent(cluster.keys.events) from error
        if not watch:
            empty = f"nothing is known of '{subject}'" if subject else "nothing has happened yet"
            show_rows(rows, COLUMNS, output, name="message", empty=empty)

    try:
        run(context.obj, command)
    except asyncio.CancelledError:
        raise typer.Exit(130) from None


def _row(message: Message) -> dict[str, Any] | None:
    try:
        event = decode(Event, message.data)
    except BadInput:
        return None
    return {
        "at": event.at,
        "kind": event.kind,
        "subject": event.subject,
        "message": event.message,
        "term": event.term,
        "plan": event.plan,
    }


def _show_line(row: dict[str, Any], output: Format) -> None:
    match output:
        case Format.JSON:
            print(json.dumps(row, ensure_ascii=False), flush=True)
        case Format.YAML:
            print("---\n" + "\n".join(f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in row.items()), flush=True)
        case Format.NAME:
            print(row["message"], flush=True)
        case Format.TABLE | Format.WIDE:
            print(f"{row['at']}  {row['kind']:<12} {row['subject']}  {row['message']}", flush=True)
