"""The store: what happened to it, and what only an operator can say about that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from cli.cluster import Cluster, run, who
from cli.journal import read_journal, repair_journal
from cli.leader import leadership
from cli.output import Column, Format, OutputOption, note, show_rows, state_colour
from shared.documents import Heartbeat, InputMark, Journal, Report, encode
from shared.errors import Missing, Refused
from shared.intents import ConfirmIntent, StoreIntent
from shared.keys import STORE_INTENT, confirm_intent_key

COLUMNS = (
    Column("STREAM", lambda r: r["stream"]),
    Column("STATE", lambda r: r["state"], style=state_colour),
    Column("WHAT", lambda r: r["what"]),
)

app = typer.Typer(help="The set of streams that a cluster lives in.", no_args_is_help=True)


@app.callback()
def store() -> None:
    """The set of streams that a cluster lives in."""


@app.command()
def status(context: typer.Context, output: OutputOption = Format.TABLE) -> None:
    """Show what users' streams are taken as they are, and what is kept because of an accident. Exit 1 if any is."""
    rows = run(context.obj, input_rows)
    show_rows(rows, COLUMNS, output, name="stream", empty="there is no stream")
    if any(row["state"] != "ok" for row in rows):
        raise typer.Exit(1)


async def input_rows(cluster: Cluster) -> list[dict[str, Any]]:
    """One row for each stream that users write, with what is wrong with it and the remedy."""
    journal = await read_journal(cluster)
    rows = []
    for name in INPUTS:
        stream, bucket = f"{cluster.keys.cluster}_{name}", getattr(cluster.keys, name)
        hold = journal.holds.get(name)
        try:
            mark = await cluster.store.mark(bucket)
        except Missing:
            what = "does not exist; restore it from a backup, or make an empty one: shoal store create"
            rows.append({"stream": stream, "state": "missing", "what": f"{what}. What runs goes on"})
            continue
        if hold is None:
            rows.append(
                {"stream": stream, "state": "ok", "what": f"made at {mark.created}, {mark.sequence} written since"}
            )
        else:
            remedy = f"write again what is missing, or say that it is meant: shoal store confirm {name}"
            what = f"{hold.reason}; what it no longer says goes on as it was; {remedy}"
            rows.append({"stream": stream, "state": "held", "what": what})
    hold = journal.holds.get("hosts")
    if hold is not None:
        what = f"{hold.reason}; nothing is moved off them; bring them back, or say that they are gone: {_GONE}"
        rows.append({"stream": cluster.keys.hosts, "state": "held", "what": what})
    return rows


_GONE = "shoal store confirm hosts"


async def stranger_rows(cluster: Cluster) -> list[dict[str, Any]]:
    """One row for each host that obeys another store than this one, or on which something runs that nobody commands."""
    journal = await read_journal(cluster)
    beats = sorted((await cluster.documents(cluster.keys.hosts, Heartbeat)).items())
    return [{"host": host, "what": what} for host, beat in beats for what in strange(beat, journal)]


def strange(beat: Heartbeat, journal: Journal) -> Iterator[str]:
    """What people have to know of a host that does not obey this store, or has what no store commands."""
    forget = f"shoal hosts forget {beat.host} --confirm-dead"
    if beat.store_id not in ("", journal.store_id):
        remedy = f"take over what it runs: shoal store accept {journal.store_id}"
        if beat.store_id in journal.accepted:
            remedy = "it is being taken over"
        yield f"it obeys store {beat.store_id}, this one is another; {remedy}"
    elif not beat.store_id and beat.strays_unknown:
        text = f"it has not said what runs there, and is given nothing before: {beat.strays_unknown}"
        yield f"{text}; if it is dead: {forget}"
    for lost in sorted({stray.store_id for stray in beat.strays} - {journal.store_id, *journal.accepted}):
        names = [stray.execution for stray in beat.strays if stray.store_id == lost]
        more = f" and {len(names) - _STRAYS_SHOWN} more" if len(names) > _STRAYS_SHOWN else ""
        what = f"{', '.join(names[:_STRAYS_SHOWN])}{more} may run there under store {lost}, which it does not obey"
        accept = f"if that one is gone for good: shoal store accept {journal.store_id} --replaces {lost}"
        yield f"{what}; {accept}; if the host is dead: {forget}"


_STRAYS_SHOWN = 3


INPUTS = ("pipelines", "configs", "operator")


@app.command()
def confirm(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="STREAM", help="pipelines, operator or hosts.")],
    reason: Annotated[str, typer.Option(help="Why, for those who look later.")] = "",
) -> None:
    """Let what a stream says now count, after it was lost, emptied, made anew or restored.

    Pipelines whose record is not in it are then removed; those whose record is another one follow it. It is said of one
    accident: the next one is held again. Of hosts: what runs on those that fell silent at once is placed elsewhere.
    """

    async def command(cluster: Cluster) -> None:
        journal = await read_journal(cluster)
        hold = journal.holds.get(name)
        if hold is None:
            held = ", ".join(sorted(journal.holds)) or "nothing"
            raise Refused(f"nothing of '{name}' is held; held now: {held}. `shoal store status` tells")
        heard = await _hosts_mark(cluster) if name == "hosts" else None
        intent = ConfirmIntent(
            store_id=journal.store_id, plan=hold.plan, created=hold.mark.created, heard=heard, reason=reason, who=who()
        )
        await cluster.store.write(cluster.keys.operator, confirm_intent_key(name), encode(intent))
        note(f"what the stream of {name} says counts now ({hold.reason})")

    run(context.obj, command)


async def _hosts_mark(cluster: Cluster) -> InputMark:
    """Whoever has not been heard when this is asked for is who the operator speaks of."""
    mark = await cluster.store.mark(cluster.keys.hosts)
    return InputMark(mark.created, mark.sequence)


@app.command()
def create(
    context: typer.Context,
    replicas: Annotated[
        int | None, typer.Option(help="Of streams that are created; default: 1 on a single server, else 3.")
    ] = None,
) -> None:
    """Make the streams that do not exist, empty. Those that exist are left as they are.

    To have the old content back, restore the stream with `nats stream restore` instead: it must not exist then.
    """
    from shared.nats_streams import describe_streams, ensure_streams

    async def command(cluster: Cluster) -> None:
        missing = [row.stream for row in await describe_streams(cluster.store, cluster.keys) if row.missing]
        await ensure_streams(cluster.store, cluster.keys, replicas=replicas)
        note(f"made: {', '.join(missing)}" if missing else "every stream exists")

    run(context.obj, command)


@app.command()
def repair(context: typer.Context) -> None:
    """Make the journal again after somebody has overwritten it. Nothing restarts.

    Schedulers say so when they cannot read it: nobody can lead then. It is made from the leader's other documents.
    """

    async def command(cluster: Cluster) -> None:
        made = await repair_journal(cluster, who())
        note(f"the journal of store {made.store_id} goes on from plan {made.plan}")

    run(context.obj, command)


@app.command()
def accept(
    context: typer.Context,
    store_id: Annotated[str, typer.Argument(metavar="STORE", help="The id that `shoal leader` shows now.")],
    replaces: Annotated[str, typer.Option(help="The id of the store that is gone; default: what the agents say.")] = "",
    reason: Annotated[str, typer.Option(help="Why, for those who look later.")] = "",
) -> None:
    """Let the agents obey a store that was made anew, and take over what they run as it runs.

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
    reports = await cluster.documents(cluster.keys.reports, Report)
    old = {b.store_id for b in beats.values()} | {r.store_id for h, r in reports.items() if h not in beats}
    old |= {stray.store_id for beat in beats.values() for stray in beat.strays}
    old -= {store_id, "", *(await read_journal(cluster)).accepted}
    if not old:
        raise Refused("no agent obeys or finds another store; if one that is away does, name its store with --replaces")
    if len(old) > 1:
        raise Refused(
            f"the agents obey or find these other stores: {', '.join(sorted(old))}; say which one with --replaces"
        )
    return old.pop()
