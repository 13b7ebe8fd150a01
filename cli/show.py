"""Showing pipelines: all of them, one in every detail, and the configuration that was admitted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.cluster import Cluster, Picture, picture, run, select
from cli.executions import execution_rows
from cli.live import live
from cli.options import Options
from cli.output import Column, Format, OutputOption, note, show_one, show_rows, state_colour
from shared.documents import Pin, decode
from shared.errors import Missing, Refused
from shared.ids import check_id, check_version
from shared.keys import CONFIG_BYTES_MAX, version_key

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the pipeline.")]

COLUMNS = (
    Column("PIPELINE", lambda r: r["pipeline"]),
    Column("NAME", lambda r: r["name"], wide=True),
    Column("STATUS", lambda r: r["status"]),
    Column("VERSION", lambda r: r["version"]),
    Column("STATE", lambda r: r["state"], style=state_colour),
    Column("READY", lambda r: f"{r['ready']}/{r['replicas']}"),
    Column("HOSTS", lambda r: ",".join(r["hosts"]), wide=True),
    Column("REASON", lambda r: "; ".join(r["problems"]) or r["reason"] or "; ".join(r["notes"])),
)


def ls(
    context: typer.Context,
    output: OutputOption = Format.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing changes.")] = False,
) -> None:
    """Show all pipelines."""
    get(context, None, output, watch)


def get(
    context: typer.Context,
    pipelines: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Only these.")] = None,
    output: OutputOption = Format.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing changes.")] = False,
) -> None:
    """Show pipelines: what is wanted, what is so, and why."""
    options: Options = context.obj
    wanted = set(pipelines or ())

    async def read(cluster: Cluster) -> list[dict[str, Any]]:
        rows = await pipeline_rows(cluster)
        missing = wanted - {r["pipeline"] for r in rows}
        if missing:
            raise Refused(f"there is no pipeline '{min(missing)}'. `shoal ls` shows all")
        return [r for r in rows if not wanted or r["pipeline"] in wanted]

    def show(rows: list[dict[str, Any]]) -> None:
        empty = "there is no pipeline yet; publish one with `shoal apply -f FILE`"
        show_rows(rows, COLUMNS, output, name="pipeline", empty=empty)

    live(options, read, show, watch)


async def pipeline_rows(cluster: Cluster) -> list[dict[str, Any]]:
    """One row a pipeline: from its record and its status; one that is being removed has only the latter."""
    seen = await picture(cluster)
    entries = await cluster.entries(cluster.keys.pipelines)
    rows = []
    for pipeline in sorted({*seen.statuses, *entries}):
        entry = entries.get(pipeline)
        rows.append(_row(pipeline, seen, _fields(entry.value) if entry and entry.value is not None else None))
    return rows


def _fields(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _row(pipeline: str, seen: Picture, fields: dict[str, Any] | None) -> dict[str, Any]:
    status = seen.statuses.get(pipeline)
    slots = status.slots if status else ()
    record = fields or {}
    return {
        "pipeline": pipeline,
        "name": str(record.get("name", "")),
        "status": "deleted" if fields is None else str(record.get("status", "?")),
        "version": status.version if status and status.version else str(record.get("version", "?")),
        "wanted_version": str(record.get("version", "")),
        "state": status.state.value if status else "-",
        "replicas": record.get("replicas", 1) if fields is not None else 0,
        "ready": sum(1 for s in slots if s.phase == "ready"),
        "hosts": sorted({s.host for s in slots if s.host}),
        "reason": status.reason if status else "",
        "problems": list(status.problems) if status else [],
        "notes": list(status.notes) if status else [],
    }


def describe(context: typer.Context, pipeline: IdArgument, output: OutputOption = Format.TABLE) -> None:
    """Show all about one pipeline: where it runs, or why not."""

    async def command(cluster: Cluster) -> dict[str, Any]:
        return await described(cluster, pipeline)

    row = run(context.obj, command)
    show_one(row, output, name="pipeline", text=_describe)


async def described(cluster: Cluster, pipeline: str) -> dict[str, Any]:
    """All that the store says about one pipeline. Refused if it says nothing."""
    seen = await picture(cluster)
    entry = await cluster.read(cluster.keys.pipelines, pipeline)
    status = seen.statuses.get(pipeline)
    if entry.value is None and status is None:
        raise Refused(f"there is no pipeline '{pipeline}'. `shoal ls` shows all")
    fields = _fields(entry.value) if entry.value is not None else None
    pins = select(await cluster.entries(cluster.keys.control), Pin, f"version.{pipeline}.")
    return {
        **_row(pipeline, seen, fields),
        "record": fields,
        "slots": [
            {"slot": s.slot, "execution": s.execution, "host": s.host, "version": s.version, "phase": s.phase}
            | {"reason": s.reason}
            for s in (status.slots if status else ())
        ],
        "executions": execution_rows(seen, pipeline),
        "refusals": [{"host": r.host, "reasons": list(r.reasons)} for r in (status.refusals if status else ())],
        "refused_hosts": status.refused_hosts if status else 0,
        "versions": [
            {"version": v, "digest": p.digest, "config_digest": p.config_digest, "overlap": p.overlap.value}
            | {"overlap_reason": p.overlap_reason, "inputs": list(p.inputs), "stop_grace_s": p.stop_grace_s}
            for v, p in sorted(pins.items())
        ],
    }


def _describe(row: Any) -> None:
    """For people: the sentence to read first, then the slots, then the rest."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    name = f" ({row['name']})" if row["name"] else ""
    console.print(Text.assemble((row["pipeline"], "bold"), name))
    console.print(Text.assemble("  state    ", (row["state"], state_colour(row["state"]))), f"  {row['reason']}")
    console.print(f"  wanted   {row['status']}, version {row['wanted_version'] or '-'}, replicas {row['replicas']}")
    if row["version"] != row["wanted_version"] and row["wanted_version"]:
        console.print(f"  in force version {row['version']}")
    for title, lines in (("problem", row["problems"]), ("note", row["notes"])):
        for line in lines:
            console.print(f"  {title:<8} {line}")
    for item in row["executions"]:
        state = Text(item["state"], style=state_colour(item["state"]))
        console.print(Text.assemble(f"  slot {item['slot']}   {item['execution']} on {item['host']}: ", state), end="")
        console.print(f", version {item['version']}, {item['restarts']} restarts", end="")
        console.print(f"\n           {item['reason']}" if item["reason"] else "")
        for line in item["last_words"][-5:]:
            console.print(f"           | {line}", style="dim")
    for slot in (s for s in row["slots"] if not s["execution"]):
        console.print(f"  slot {slot['slot']}   {slot['phase']}: {slot['reason']}")
    if row["refusals"]:
        console.print(f"  {row['refused_hosts']} hosts refuse it, the nearest first:")
        for refusal in row["refusals"]:
            console.print(f"    {refusal['host']}: {'; '.join(refusal['reasons'])}")
    for version in row["versions"]:
        console.print(
            f"  version {version['version']}: {version['overlap']} ({version['overlap_reason']}), "
            f"bundle {version['digest'][:12]}"
        )


def config(
    context: typer.Context,
    pipeline: IdArgument,
    version: Annotated[str | None, typer.Option("--version", help="Not the one in force but this one.")] = None,
    directory: Annotated[Path | None, typer.Option("--directory", "-d", help="Write all files there.")] = None,
) -> None:
    """Print the Bento configuration that was admitted.

    It is what runs, whatever the object store says today.
    """

    async def command(cluster: Cluster) -> tuple[tuple[str, bytes], ...]:
        return await _admitted(cluster, pipeline, version)

    files = run(context.obj, command)
    if directory is None:
        sys.stdout.buffer.write(files[0][1])
        sys.stdout.flush()
        for name, data in files[1:]:
            note(f"also: {name} ({len(data)} bytes); `--directory DIR` writes all files")
        return
    for name, data in files:
        target = directory / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        except OSError as error:
            raise Refused(f"{target} cannot be written ({error.strerror}); give another --directory") from error
        note(f"wrote {target}")


async def _admitted(cluster: Cluster, pipeline: str, version: str | None) -> tuple[tuple[str, bytes], ...]:
    from shared.bundle import read_bundle

    check_id(pipeline)
    if version is None:
        seen = await picture(cluster)
        status = seen.statuses.get(pipeline)
        if status is None or not status.version:
            raise Refused(f"no version of '{pipeline}' is in force; name one with --version")
        version = status.version
    check_version(version)
    entry = await cluster.read(cluster.keys.control, version_key(pipeline, version))
    if entry.value is None:
        raise Refused(f"version {version} of '{pipeline}' was never admitted; `shoal describe {pipeline}`")
    pin = decode(Pin, entry.value)
    try:
        data = await cluster.store.get_object(cluster.keys.bundles, pin.digest, bytes_max=2 * CONFIG_BYTES_MAX)
    except Missing as error:
        raise Refused(f"the bundle {pin.digest} of version {version} is missing in the store") from error
    _, files = read_bundle(data, pin.digest)
    return tuple(files)
