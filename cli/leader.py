"""Who leads."""

from __future__ import annotations

import asyncio
from typing import Any

import typer

from cli.cluster import Cluster, run
from cli.journal import read_journal
from cli.output import Format, OutputOption, note, show_one
from shared.documents import Lease, decode
from shared.errors import Refused
from shared.keys import LEASE

_BEAT_S = 1.6  # three renewals


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(leader)


def leader(context: typer.Context, output: OutputOption = Format.TABLE) -> None:
    """Show which scheduler leads, its term and its last plan. Exit 1 if none does."""

    def text(row: Any) -> None:
        print(f"{row['name'] or 'nobody'}  term {row['term']}  plan {row['plan']}  store {row['store_id']}")

    row = run(context.obj, leadership)
    show_one(row, output, name="name", text=text)
    if not row["alive"]:
        note("no scheduler is renewing its lease: nothing new is placed. Start one with `shoal scheduler`")
        raise typer.Exit(1)


async def leadership(cluster: Cluster) -> dict[str, Any]:
    """Who holds the lease, and whether the lease is being renewed as we watch."""
    chain = await read_journal(cluster)
    first = await cluster.read(cluster.keys.control, LEASE)
    if first.value is None:
        raise Refused("no scheduler has ever led here. Start one with `shoal scheduler`")
    alive = False
    waited = 0.0
    while not alive and waited < _BEAT_S:
        await asyncio.sleep(0.1)
        waited += 0.1
        second = await cluster.read(cluster.keys.control, LEASE)
        alive = second.revision != first.revision and second.value is not None
        first = second if alive else first
    lease = decode(Lease, first.value or b"{}")
    return {
        "name": lease.name,
        "instance": lease.holder,
        "alive": alive and bool(lease.holder),
        "term": chain.term,
        "plan": chain.plan,
        "store_id": chain.store_id,
        "accepted": list(chain.accepted),
        "reasons": list(chain.reasons),
    }
