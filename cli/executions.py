"""Executions: where everything runs, and how it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cli.cluster import Cluster, Picture, picture
from cli.live import live
from cli.options import Options
from cli.output import Column, Format, OutputOption, show_rows, state_colour
from shared.documents import Observed, Stopping
from shared.ids import check_id

COLUMNS = (
    Column("EXECUTION", lambda r: r["execution"]),
    Column("SLOT", lambda r: r["slot"], wide=True),
    Column("HOST", lambda r: r["host"]),
    Column("VERSION", lambda r: r["version"]),
    Column("STATE", lambda r: r["state"], style=state_colour),
    Column("RESTARTS", lambda r: r["restarts"]),
    Column("RUNTIME", lambda r: r["runtime"], wide=True),
    Column("DIGEST", lambda r: r["digest"][:12], wide=True),
    Column("REASON", lambda r: r["reason"]),
)


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(executions)


def executions(
    context: typer.Context,
    pipeline: Annotated[str | None, typer.Argument(metavar="ID", help="Only those of this pipeline.")] = None,
    output: OutputOption = Format.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing changes.")] = False,
) -> None:
    """Show where everything runs, and in which state."""
    options: Options = context.obj
    if pipeline is not None:
        check_id(pipeline)

    async def read(cluster: Cluster) -> list[dict[str, Any]]:
        return execution_rows(await picture(cluster), pipeline)

    def show(rows: list[dict[str, Any]]) -> None:
        empty = f"nothing of '{pipeline}' is placed anywhere" if pipeline else "nothing is placed anywhere"
        show_rows(rows, COLUMNS, output, name="execution", empty=empty)

    live(options, read, show, watch)


def execution_rows(seen: Picture, pipeline: str | None = None) -> list[dict[str, Any]]:
    """One row an execution that is assigned or still being stopped.

    The state is the leader's word (it knows which hosts are silent), counters are the host's.
    """
    judged = {s.execution: s for status in seen.statuses.values() for s in status.slots if s.execution}
    observed = {(h, o.execution): o for h, report in seen.reports.items() for o in report.executions}
    rows: list[dict[str, Any]] = []
    for host, assignment in sorted(seen.assignments.items()):
        for item in assignment.executions:
            slot = judged.get(item.execution)
            own = observed.get((host, item.execution))
            phase = slot.phase if slot else own.phase.value if own else "starting"
            reason = slot.reason if slot else own.reason if own else ""
            rows.append(
                {
                    "execution": item.execution,
                    "pipeline": item.pipeline,
                    "slot": item.slot,
                    "host": host,
                    "version": item.version,
                    "state": phase,
                    "wanted": item.wanted.value,
                    "overlap": item.overlap.value,
                    "digest": item.digest,
                    **_own(own),
                    "reason": reason,
                }
            )
        rows += [_leaving(host, leaving, observed) for leaving in assignment.stopping]
    rows.sort(key=lambda r: (r["pipeline"], r["slot"], r["execution"]))
    return [row for row in rows if pipeline in (None, row["pipeline"])]


def _leaving(host: str, leaving: Stopping, observed: Mapping[tuple[str, str], Observed]) -> dict[str, Any]:
    return {
        "execution": leaving.execution,
        "pipeline": leaving.pipeline,
        "slot": leaving.slot,
        "host": host,
        "version": leaving.version,
        "state": "stopping",
        "wanted": "gone",
        "overlap": leaving.overlap.value,
        "digest": "",
        **_own(observed.get((host, leaving.execution))),
        "reason": leaving.reason,
    }


def _own(own: Observed | None) -> dict[str, Any]:
    return {
        "restarts": own.restarts if own else 0,
        "healed": own.healed if own else 0,
        "runtime": own.runtime if own else "",
        "exit_code": own.exit_code if own else None,
        "last_words": list(own.last_words) if own else [],
    }
