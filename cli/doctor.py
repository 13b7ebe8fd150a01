"""`shoal doctor`: is everything in place, and what to do where it is not."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import typer

from cli.cluster import Cluster, run, select
from cli.hosts import host_rows
from cli.leader import leadership
from cli.output import Column, Format, OutputOption, show_rows, state_colour
from cli.store import input_rows, stranger_rows
from shared import __version__
from shared.documents import Assignment, Heartbeat, Journal, Pin, Report, Status
from shared.errors import ShoalError
from shared.intents import HostIntent, RestartIntent, StoreIntent
from shared.keys import PULSE

COLUMNS = (
    Column("CHECK", lambda r: r["check"]),
    Column("STATE", lambda r: r["state"], style=state_colour),
    Column("WHAT", lambda r: r["what"]),
)

Finding = dict[str, Any]
_SHOWN_MAX = 5


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(doctor)


def doctor(context: typer.Context, output: OutputOption = Format.TABLE) -> None:
    """Check the whole cluster. Exit 1 if something is bad.

    Streams and what is held of them, leader, store, hosts, versions, documents, and Bento on this machine.
    """

    async def command(cluster: Cluster) -> list[Finding]:
        rows: list[Finding] = []
        for name, check in CHECKS:
            try:
                rows += [row async for row in check(cluster)]
            except ShoalError as error:
                rows.append(finding(name, False, str(error)))
        return rows

    rows = run(context.obj, command)
    show_rows(rows, COLUMNS, output, name="check", empty="nothing was checked")
    if any(row["state"] == "bad" for row in rows):
        raise typer.Exit(1)


def finding(check: str, ok: bool, what: str) -> Finding:
    """One line of the report."""
    return {"check": check, "state": "ok" if ok else "bad", "what": what}


async def _streams(cluster: Cluster) -> AsyncIterator[Finding]:
    from shared.nats_streams import describe_streams

    for row in await describe_streams(cluster.store, cluster.keys):
        copies = f"{row.replicas} replicas, leader {row.leader or 'none'}" if row.replicas > 1 else "1 replica"
        where = f"{copies}, {row.consumers} consumers, {row.bytes} bytes"
        yield finding(f"stream {row.stream}", row.ok, "; ".join(row.differs) if row.differs else where)


async def _leader(cluster: Cluster) -> AsyncIterator[Finding]:
    row = await leadership(cluster)
    if row["alive"]:
        yield finding("leader", True, f"{row['name']}, term {row['term']}, plan {row['plan']}, store {row['store_id']}")
    else:
        yield finding("leader", False, "nobody renews the lease: start `shoal scheduler`")


async def _store(cluster: Cluster) -> AsyncIterator[Finding]:
    for row in await input_rows(cluster):
        if row["state"] == "held":
            yield finding(f"store {row['stream']}", False, row["what"])
    for row in await stranger_rows(cluster):
        yield finding(f"store of {row['host']}", False, row["what"])


async def _hosts(cluster: Cluster) -> AsyncIterator[Finding]:
    rows = await host_rows(cluster)
    if not rows:
        yield finding("hosts", False, "no host has registered: start `shoal agent` on one")
    for row in rows:
        bad_drivers = [d for d in row["drivers"] if "bad" in d]
        what = f"{row['executions']} executions, drivers {', '.join(row['drivers'])}"
        yield finding(f"host {row['host']}", row["state"].startswith("alive") and not bad_drivers, _host(row, what))
    versions = sorted({r["software"] for r in rows if r["software"]} | {__version__})
    same = len(versions) == 1
    what = f"all {versions[0]}" if same else f"mixed: {', '.join(versions)} (this program is {__version__})"
    yield finding("versions", same, what)


def _host(row: dict[str, Any], what: str) -> str:
    if row["state"] == "unreadable":
        away = f"if there is no such host, `shoal hosts forget {row['host']}`"
        return f"{row['state']}: {row['reason']}; {away}"
    return what if row["state"].startswith("alive") else f"{row['state']}; is its agent running? {what}"


async def _documents(cluster: Cluster) -> AsyncIterator[Finding]:
    keys = cluster.keys
    bad: list[str] = []
    for bucket, kinds in (
        (keys.hosts, {"": Heartbeat}),
        (keys.reports, {"": Report}),
        (keys.control, {"assign.": Assignment, "status.": Status, "version.": Pin, "journal": Journal}),
        (keys.operator, {"host.": HostIntent, "restart.": RestartIntent, "store": StoreIntent}),
    ):
        entries = {key: entry for key, entry in (await cluster.entries(bucket)).items() if entry.value is not None}
        known = {key for key in entries if key.startswith(tuple(kinds)) and key != PULSE}
        read = {prefix + key for prefix, kind in kinds.items() for key in select(entries, kind, prefix)}
        bad += [f"{bucket} {key}" for key in sorted(known - read)]
    shown = ", ".join(bad[:_SHOWN_MAX]) + (", ..." if len(bad) > _SHOWN_MAX else "")
    told = f"{len(bad)} are not what their keys say and change nothing: {shown}; delete them with `nats kv del`"
    yield finding("documents", not bad, told if bad else "all can be read")


async def _bento(_: Cluster) -> AsyncIterator[Finding]:
    beside = Path(sys.executable).parent / "bento"
    found = str(beside) if beside.exists() else shutil.which("bento")
    if found is None:
        yield finding("bento", False, "not on this machine; a scheduler needs it to check configurations")
        return
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(found, "--version", stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    output = (await child.communicate())[0].decode("utf-8", "replace").splitlines()
    yield finding("bento", child.returncode == 0, output[0] if output else found)


Check = Callable[[Cluster], AsyncIterator[Finding]]
CHECKS: tuple[tuple[str, Check], ...] = (
    ("streams", _streams),
    ("leader", _leader),
    ("store", _store),
    ("hosts", _hosts),
    ("documents", _documents),
    ("bento", _bento),
)
