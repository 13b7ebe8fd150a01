"""Waiting until a pipeline is where it should be, or until it is clear that it will not get there."""

from __future__ import annotations

import asyncio
import json
import time
from enum import StrEnum
from typing import Annotated

import typer

from cli.cluster import Cluster, TimedOut, run
from cli.options import Options
from cli.output import note
from shared.documents import Status, decode
from shared.errors import Refused
from shared.ids import check_id
from shared.keys import status_key
from shared.record import PipelineStatus
from shared.states import State

_POLL_S = 0.04  # a person's "at once" is 0.1 s; one read costs the server a tenth of a millisecond
_SETTLE_S = 5.0  # a refusal has to stand this long before a waiting command gives up: a host may just be starting


class Goal(StrEnum):
    """What can be waited for."""

    RUNNING = "running"
    PAUSED = "paused"
    GONE = "gone"


WaitOption = Annotated[bool, typer.Option("--wait", help="Wait until it is so; exit 1 with the reason if it can't be.")]
TimeoutOption = Annotated[str, typer.Option("--timeout", help="How long to wait, such as 60s or 2m.")]


def seconds(text: str) -> float:
    """A duration such as `60s`, `2m`, `1h` or plain seconds. A usage error if it is none."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    for unit in ("ms", "s", "m", "h", ""):
        number = text.removesuffix(unit) if unit else text
        if text.endswith(unit) and number.replace(".", "", 1).isdigit():
            return float(number) * units.get(unit, 1.0)
    raise typer.BadParameter(f"'{text}' is no duration; write 60s, 2m or 1h")


async def wait_for(cluster: Cluster, pipeline: str, goal: Goal, timeout_s: float, record: int = 0) -> None:
    """Return when the goal is reached by a status that speaks of record revision `record` or a newer one.

    Refused with the reason when it cannot be reached as things stand; TimedOut otherwise.
    """
    started = time.monotonic()
    refused_since: float | None = None
    while True:
        entry = await cluster.read(cluster.keys.control, status_key(pipeline))
        status = decode(Status, entry.value) if entry.value is not None else None
        if _reached(goal, status, record) and (goal is not Goal.GONE or await _no_record(cluster, pipeline)):
            return
        now = time.monotonic()
        if goal is not Goal.GONE and status is not None and _hopeless(status, record):
            refused_since = now if refused_since is None else refused_since
            if now - refused_since >= _grace(status):
                raise Refused(f"{pipeline} is {status.state}: {status.reason or '; '.join(status.problems)}")
        else:
            refused_since = None
        if now - started >= timeout_s:
            raise TimedOut(_late(pipeline, goal, status, timeout_s))
        await asyncio.sleep(_POLL_S)


def _reached(goal: Goal, status: Status | None, record: int) -> bool:
    if status is None:
        return goal is Goal.GONE
    if status.record < record or status.problems:
        return False
    match goal:
        case Goal.RUNNING:
            return status.state is State.RUNNING
        case Goal.PAUSED:
            return status.state is State.PAUSED
        case Goal.GONE:
            return False


async def _no_record(cluster: Cluster, pipeline: str) -> bool:
    entry = await cluster.read(cluster.keys.pipelines, pipeline)
    return entry.value is None or is_draft(entry.value)


def is_draft(record: bytes) -> bool:
    """A draft leaves no status either; what is gone is what runs. A record that wants to run, or makes no sense, is
    not gone."""
    try:
        fields = json.loads(record)
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and fields.get("status") == PipelineStatus.DRAFT.value


def _hopeless(status: Status, record: int) -> bool:
    if status.record < record:
        return False
    return bool(status.problems) or status.state in (State.REFUSED, State.WAITING)


def _grace(status: Status) -> float:
    return 0.0 if status.problems or status.state is State.REFUSED else _SETTLE_S


def _late(pipeline: str, goal: Goal, status: Status | None, timeout_s: float) -> str:
    if status is None:
        return (
            f"{pipeline} has no status after {timeout_s:g} s: is a scheduler running? `shoal leader` tells; "
            "`shoal ls` shows the records"
        )
    reason = f": {status.reason}" if status.reason else ""
    return f"{pipeline} is {status.state} and not {goal} after {timeout_s:g} s{reason}. `shoal describe {pipeline}`"


def wait(
    context: typer.Context,
    pipeline: Annotated[str, typer.Argument(metavar="ID", help="Id of the pipeline.")],
    goal: Annotated[Goal, typer.Option("--for", help="What to wait for.")] = Goal.RUNNING,
    timeout: TimeoutOption = "60s",
) -> None:
    """Wait until a pipeline runs, is paused or is gone. Exit 1 if it cannot be placed, 3 if it took too long."""
    options: Options = context.obj
    check_id(pipeline)
    limit = seconds(timeout)
    run(options, lambda cluster: wait_for(cluster, pipeline, goal, limit))
    note(f"{pipeline} is {goal}")
