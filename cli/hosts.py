"""Hosts: who is there, how full they are, and taking them out of service."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Annotated, Any

import typer

from cli import forgetting
from cli.cluster import Cluster, Picture, TimedOut, picture, run, select, who
from cli.live import live
from cli.options import Options
from cli.output import Column, Format, OutputOption, memory_text, note, show_rows, state_colour
from cli.wait import TimeoutOption, WaitOption, seconds
from shared.documents import Assigned, Assignment, Heartbeat, Session, Stopping, decode, encode
from shared.errors import Refused
from shared.ids import check_id
from shared.intents import HostIntent
from shared.keys import assign_key, host_intent_key
from shared.states import Overlap

app = typer.Typer(help="Hosts, and taking them out of service.", invoke_without_command=True)

HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="Name of the host.")]
ReasonOption = Annotated[str, typer.Option(help="Why, for those who look later.")]

UNREADABLE = (
    "somebody has overwritten its heartbeat. An agent that lives writes a new one within seconds; one that is dead "
    "counts as silent, and what it had moves"
)
_LISTEN_S = 2.2  # two heartbeats: whoever does not show one in this time is silent for people

COLUMNS = (
    Column("HOST", lambda r: r["host"]),
    Column("STATE", lambda r: r["state"], style=state_colour),
    Column("EXECUTIONS", lambda r: r["executions"]),
    Column("CPU", lambda r: f"{r['cpu_used']:g}/{r['cpu']:g}"),
    Column("MEMORY", lambda r: f"{memory_text(r['memory_used'])}/{memory_text(r['memory'])}"),
    Column("DRIVERS", lambda r: ",".join(r["drivers"])),
    Column("SESSION", lambda r: r["session"], wide=True),
    Column("VERSION", lambda r: r["software"], wide=True),
    Column("LABELS", lambda r: ",".join(f"{k}={v}" for k, v in r["labels"].items())),
)


@app.callback()
def hosts(
    context: typer.Context,
    output: OutputOption = Format.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing changes.")] = False,
) -> None:
    """Show the hosts: alive or silent, how full, cordoned or draining."""
    if context.invoked_subcommand is not None:
        return
    options: Options = context.obj

    def show(rows: list[dict[str, Any]]) -> None:
        show_rows(rows, COLUMNS, output, name="host", empty="no host has registered yet; start `shoal agent` on one")

    live(options, host_rows, show, watch)


async def host_rows(cluster: Cluster) -> list[dict[str, Any]]:
    """One row a host. A host is alive if its heartbeat changes while we look: no clock of another machine is read."""
    before = await cluster.documents(cluster.keys.hosts, Heartbeat)
    started = time.monotonic()
    seen = await picture(cluster)
    intents = await cluster.documents(cluster.keys.operator, HostIntent, "host.")
    while True:
        beats = await cluster.documents(cluster.keys.hosts, Heartbeat)
        quiet = [h for h, b in beats.items() if h in before and before[h].sequence == b.sequence]
        if not quiet or time.monotonic() - started >= _LISTEN_S:
            break
        await asyncio.sleep(0.1)
    rows = []
    for host, beat in sorted(beats.items()):
        assignment = seen.assignments.get(host)
        items = assignment.executions if assignment else ()
        rows.append(
            {
                "host": host,
                "state": _state(host in quiet, intents.get(host, HostIntent()), beat),
                "executions": len(items),
                "cpu": beat.cpu,
                "cpu_used": round(sum(i.cpu for i in items), 3),
                "memory": beat.memory_bytes,
                "memory_used": sum(i.memory_bytes for i in items),
                "drivers": [d if v.ok else f"{d} (bad: {v.reason})" for d, v in sorted(beat.drivers.items())],
                "labels": dict(beat.labels),
                "session": str(beat.session),
                "software": beat.software,
                "reason": intents.get(host, HostIntent()).reason,
            }
        )
    rows += [_unreadable(host, seen) for host in await _unreadable_hosts(cluster)]
    return sorted(rows, key=lambda row: str(row["host"]))


async def _unreadable_hosts(cluster: Cluster) -> list[str]:
    """The hosts on whose key is something, and no heartbeat. `_pulse` is not a host."""
    entries = await cluster.entries(cluster.keys.hosts)
    there = {key for key, entry in entries.items() if entry.value is not None and not key.startswith("_")}
    return sorted(there - select(entries, Heartbeat, "").keys())


def _unreadable(host: str, seen: Picture) -> dict[str, Any]:
    """The row of a host of which nothing but its assignment can be told."""
    assignment = seen.assignments.get(host)
    items = assignment.executions if assignment else ()
    return {
        "host": host,
        "state": "unreadable",
        "executions": len(items),
        "cpu": 0.0,
        "cpu_used": round(sum(i.cpu for i in items), 3),
        "memory": 0,
        "memory_used": sum(i.memory_bytes for i in items),
        "drivers": [],
        "labels": {},
        "session": "",
        "software": "",
        "reason": UNREADABLE,
    }


def _state(silent: bool, intent: HostIntent, beat: Heartbeat) -> str:
    words = ["dead" if beat.dead else "silent" if silent else "alive"]
    words += [w for w, on in (("draining", intent.drain), ("cordoned", intent.cordon and not intent.drain)) if on]
    return ",".join(words)


@app.command()
def cordon(context: typer.Context, host: HostArgument, reason: ReasonOption = "") -> None:
    """Place nothing new on a host; what runs there stays."""
    _intend(context.obj, host, HostIntent(cordon=True, reason=reason, who=who()), "cordoned")


@app.command()
def uncordon(context: typer.Context, host: HostArgument) -> None:
    """Let a cordoned or drained host take executions again."""
    _intend(context.obj, host, None, "in service again")


@app.command()
def drain(
    context: typer.Context,
    host: HostArgument,
    reason: ReasonOption = "",
    wait: WaitOption = False,
    timeout: TimeoutOption = "5m",
) -> None:
    """Move everything off a host and place nothing new on it."""
    _intend(context.obj, host, HostIntent(cordon=True, drain=True, reason=reason, who=who()), "draining")
    if wait:
        limit = seconds(timeout)
        run(context.obj, lambda cluster: _wait_empty(cluster, host, limit))
        note(f"{host} is empty")


@app.command()
def forget(
    context: typer.Context,
    host: HostArgument,
    confirm_dead: Annotated[
        bool, typer.Option("--confirm-dead", help="I know that it does not run: also let go of what goes on cut off.")
    ] = False,
    timeout: TimeoutOption = "60s",
) -> None:
    """Forget a host that will not come back: what it had is placed elsewhere, and its name is free again.

    Refused while it lives: stop its agent first. What `on_partition: continue` keeps running on a host that is cut off
    is let go only with --confirm-dead, and so what it was found with and no store commands.
    """
    limit = seconds(timeout)

    async def command(cluster: Cluster) -> None:
        rows = {r["host"]: r for r in await host_rows(cluster)}
        await _require(cluster, host)
        if rows.get(host, {}).get("state", "").startswith("alive"):
            raise Refused(f"{host} is alive; drain it and stop its agent first (`shoal hosts drain {host} --wait`)")
        left = [] if confirm_dead else await going_on(cluster, host)
        if left:
            raise Refused(
                f"{', '.join(left)} may still run on {host}, cut off from here. If the host is dead and not only "
                f"out of reach: `shoal hosts forget {host} --confirm-dead`"
            )
        known = await forgetting.look(cluster.read, cluster.keys, host)
        objection = "" if confirm_dead else forgetting.objection(known)
        if objection:
            raise Refused(f"{objection}, or if it is dead: `shoal hosts forget {host} --confirm-dead`")
        before = await cluster.read(cluster.keys.operator, host_intent_key(host))
        intent = encode(HostIntent(cordon=True, forget=True, confirm_dead=confirm_dead, who=who()))
        await cluster.store.write(cluster.keys.operator, host_intent_key(host), intent)
        try:
            await forgetting.until_let_go(cluster.read, cluster.keys, known, limit)
            await forgetting.delete(cluster.read, cluster.store, cluster.keys, known)
        except Refused:
            # Otherwise it would be let go the next time it is silent for some seconds.
            await cluster.store.write(cluster.keys.operator, host_intent_key(host), before.value)
            raise
        await cluster.store.write(cluster.keys.operator, host_intent_key(host), None)
        note(f"{host} is forgotten")

    run(context.obj, command)


@app.command("confirm-dead")
def confirm_dead(
    context: typer.Context,
    host: HostArgument,
    yes: Annotated[
        bool, typer.Option("--yes", help="I know that it does not run. Without it: say what it means.")
    ] = False,
    reason: ReasonOption = "",
) -> None:
    """Say that a silent host is dead, so that what would go on there when it is cut off is placed elsewhere.

    Only an exclusive pipeline with `on_partition: continue` needs it, and what the host was found with and no store
    commands: everything else moves by itself. If the host does run after all, such a pipeline then runs twice until the
    host is heard again. It counts until then, for this life of the host only, and leaves cordon and drain as they are.
    """

    async def command(cluster: Cluster) -> None:
        rows = {r["host"]: r for r in await host_rows(cluster)}
        await _require(cluster, host)
        alive = rows.get(host, {}).get("state", "").startswith("alive")
        before, now = await _sessions(cluster, host)
        if alive and (before is None or now is None or before.agent == now.agent):
            raise Refused(f"{host} is alive")
        # The next version may be exclusive. What another session was found with is not of the one that is spoken of.
        left = await going_on(cluster, host, shareable=True, strays=before in (None, now))
        if not left:
            raise Refused(
                f"nothing waits for that: whatever {host} had moves by itself, `shoal describe PIPELINE` tells"
            )
        if not yes:
            raise Refused(
                f"{', '.join(left)} may still run on {host}, cut off from here, and would then run twice. If "
                f"the host is dead and not only cut off: `shoal hosts confirm-dead {host} --yes`"
            )
        entry = await cluster.read(cluster.keys.operator, host_intent_key(host))
        known = HostIntent() if entry.value is None else decode(HostIntent, entry.value)
        beats = await cluster.documents(cluster.keys.hosts, Heartbeat)
        session = before or now
        sequence = beats[host].sequence if host in beats and beats[host].session == session else 0
        intent = replace(
            known, confirm_dead=True, session=session, sequence=sequence, reason=reason or known.reason, who=who()
        )
        await cluster.store.write(cluster.keys.operator, host_intent_key(host), encode(intent), expected=entry.revision)
        note(f"{host} counts as dead in session {session}; {', '.join(left)} can be placed elsewhere")

    run(context.obj, command)


def _intend(options: Options, host: str, intent: HostIntent | None, done: str) -> None:
    async def command(cluster: Cluster) -> None:
        await _require(cluster, host)
        value = encode(intent) if intent else None
        await cluster.store.write(cluster.keys.operator, host_intent_key(host), value)
        note(f"{host} is {done}")

    run(options, command)


async def _require(cluster: Cluster, host: str) -> None:
    check_id(host, "host")
    if (await cluster.read(cluster.keys.hosts, host)).value is None:
        known = ", ".join(sorted(await cluster.documents(cluster.keys.hosts, Heartbeat))) or "none"
        raise Refused(f"there is no host '{host}' (known: {known})")


async def _assignment(cluster: Cluster, host: str) -> Assignment | None:
    entry = await cluster.read(cluster.keys.control, assign_key(host))
    return decode(Assignment, entry.value) if entry.value is not None else None


async def _sessions(cluster: Cluster, host: str) -> tuple[Session | None, Session | None]:
    """Who a host's assignment was made for, and who was heard last under its name."""
    document, beats = await _assignment(cluster, host), await cluster.documents(cluster.keys.hosts, Heartbeat)
    before = None if document is None else document.session
    return before, beats[host].session if host in beats else None


async def going_on(cluster: Cluster, host: str, *, shareable: bool = False, strays: bool = True) -> list[str]:
    """What no silence of its host ends: executions that obey no lease; those that may overlap only if asked for. What
    no document names is one of them for all that is known, unless `strays` leaves it out."""
    document = await _assignment(cluster, host)
    items: tuple[Assigned | Stopping, ...] = ()
    if document is not None:
        items = (*document.executions, *document.stopping)
    alone = [i.execution for i in items if not i.lease_bound and (shareable or i.overlap is Overlap.EXCLUSIVE)]
    if not strays:
        return alone
    known = await forgetting.look(cluster.read, cluster.keys, host)
    return list(dict.fromkeys([*alone, *forgetting.straying(known)]))


async def _wait_empty(cluster: Cluster, host: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        document = await _assignment(cluster, host)
        if document is None or not (document.executions or document.stopping):
            return
        if time.monotonic() >= deadline:
            names = [i.execution for i in document.executions] + [i.execution for i in document.stopping]
            left = ", ".join(names)
            raise TimedOut(f"{host} still has {left}; `shoal describe PIPELINE` says why it cannot move")
        await asyncio.sleep(0.1)
