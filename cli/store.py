"""The store: accepting another one, on an operator's word alone."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.cluster import Cluster, run, who
from cli.leader import leadership
from cli.output import note
from shared.documents import Heartbeat, StoreIntent, encode
from shared.errors import Refused
from shared.keys import STORE_INTENT

app = typer.Typer(help="The set of streams that a cluster lives in.", no_args_is_help=True)


@app.callback()
def store() -> None:
    """The set of streams that a cluster lives in."""


@app.command()
def accept(
    context: typer.Context,
    store_id: Annotated[str, typer.Argument(metavar="STORE", help="The id that `shoal leader` shows now.")],
    replaces: Annotated[str, typer.Option(help="The id of the store that is gone; default: what the agents say.")] = "",
    reason: Annotated[str, typer.Option(help="Why, for those who look later.")] = "",
) -> None:
    """Let the agents obey a store that was made anew, and keep what they run.

    Say it only when the old store is gone for good: two stores that both command the same hosts would fight.
    """

    async def command(cluster: Cluster) -> None:
        now = await leadership(cluster)
        if now["store_id"] != store_id:
            raise Refused(f"the store that answers here is {now['store_id']}, not {store_id}")
        old = replaces or await _old_store(cluster, store_id)
        intent = encode(StoreIntent(accept=store_id, replaces=old, reason=reason, who=who()))
        await cluster.store.write(cluster.keys.operator, STORE_INTENT, intent)
        note(f"store {store_id} may command the agents of store {old}")

    run(context.obj, command)


async def _old_store(cluster: Cluster, store_id: str) -> str:
    beats = await cluster.documents(cluster.keys.hosts, Heartbeat)
    old = {b.store_id for b in beats.values()} - {store_id, ""}
    if len(old) != 1:
        found = ", ".join(sorted(old)) or "none"
        raise Refused(f"the agents obey these other stores: {found}; say which one with --replaces")
    return old.pop()
