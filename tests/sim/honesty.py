"""Nothing is shown as running that is not.

A report of an agent is judged by the machine: what it calls ready was ready at some instant shortly before. A status is
judged by the reports: what it calls ready, an agent had called ready shortly before, and it says "running" only if it
calls every slot ready. "Shortly" is the time that messages take; while the store or a connection is ill, what is
written may be as old as that illness is long, so the faults of the run are added. Illnesses of its writer that follow
each other are one: a commit is sent again until it is known to have landed or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.documents import Report, Status, decode
from shared.states import Phase, State
from shared.store import Entry
from tests.sim.faults import Fault
from tests.sim.users import SLOTS_MAX
from tests.support.fake_executor import Run

if TYPE_CHECKING:
    from tests.sim.world import World

REPORT_LAG_S = 2.5  # health is read once a second, a list every five; an end wakes the agent at once
STATUS_LAG_S = 3.0
ILL_S = 12.0  # how long an illness may echo: requests that time out after 5 s and are sent again
READY_S = 0.1  # no execution of the simulation is ready faster
_ILLNESSES = (
    *(
        "stream made anew",
        "deposed server",
        "store",
        "connection",
        "lost",
        "late",
        "watch",
        "lagging",
        "slow",
        "hanging",
        "failing",
    ),
    *("scheduler", "agent frozen", "host cut off", "heartbeats cut off", "assignments cut off"),
)


def honesty(world: World) -> Iterator[str]:
    """Reports and statuses that claim too much."""
    yield from _reports(world)
    yield from _statuses(world)


def age_s(world: World, writer: str, at: float, lag_s: float) -> float:
    """How old may be what a thing says that `writer` writes at `at`: `lag_s` or, when it was ill, as long as that."""
    ill = [fault for fault in world.faults if fault.kind.startswith(_ILLNESSES)]
    begun = min((fault.at for fault in ill if fault.at <= at <= fault.until + ILL_S), default=None)
    if begun is None:
        return lag_s
    for fault in sorted(ill, key=_end, reverse=True):
        if fault.at < begun <= fault.until + ILL_S and fault.concerns(writer):
            begun = fault.at
    return max(lag_s, at - begun + ILL_S)


def _end(fault: Fault) -> float:
    return fault.until


def _reports(world: World) -> Iterator[str]:
    runs: dict[str, list[Run]] = {}
    for run in world.ledger.runs:
        runs.setdefault(run.execution, []).append(run)
    for commit in world.server.of(world.keys.reports):
        for entry in commit.entries:
            if entry.value is None:
                continue
            lag_s = age_s(world, commit.writer, commit.at, REPORT_LAG_S)
            for seen in decode(Report, entry.value).executions:
                if seen.phase is Phase.READY and not _was_ready(runs.get(seen.execution, []), commit.at, lag_s):
                    yield f"{entry.key} reports {seen.execution} as ready, which it was not: {commit}"


def _was_ready(runs: list[Run], at: float, lag_s: float) -> bool:
    """Whether one of these runs was ready at some instant in the last `lag_s`."""
    return any(
        run.start + READY_S <= at and (run.end is None or run.end >= max(at - lag_s, run.start + READY_S))
        for run in runs
    )


def _replicas(world: World, entry: Entry) -> int:
    """How many slots a record asks for; 0 for one that is refused or may be, whose predecessor stays in force."""
    record = world.users.meaning(entry.value or b"")
    count = 0 if record is None else record.get("replicas", 1)
    return 0 if world.users.kinds[entry.key] == "exclusive" and count > 1 else count


def _statuses(world: World) -> Iterator[str]:
    said: dict[str, float] = {}  # execution -> when an agent last called it ready
    ready_now: dict[str, set[str]] = {}
    replicas: dict[tuple[str, int], int] = {}  # by revision of the record; a stream made anew may use one twice
    for commit in world.server.history:
        for entry in commit.entries:
            if commit.bucket == world.keys.reports and entry.value is not None:
                report = decode(Report, entry.value)
                for execution in ready_now.get(entry.key, set()):
                    said[execution] = commit.at  # until this very moment
                ready_now[entry.key] = {seen.execution for seen in report.executions if seen.phase is Phase.READY}
            elif commit.bucket == world.keys.pipelines and entry.value is not None:
                name = (entry.key, entry.revision)
                replicas[name] = min(_replicas(world, entry), replicas.get(name, SLOTS_MAX))
            elif commit.bucket == world.keys.control and entry.key.startswith("status.") and entry.value is not None:
                status = decode(Status, entry.value)
                believed = set().union(*ready_now.values()) if ready_now else set()
                for slot in status.slots:
                    if slot.phase != Phase.READY or slot.execution in believed:
                        continue
                    old_s = commit.at - said.get(slot.execution, -1e9)
                    if old_s > age_s(world, commit.writer, commit.at, STATUS_LAG_S):
                        yield f"{entry.key} shows {slot.execution} as ready, which no agent says: {commit}"
                if any(note.startswith("kept as it was") for note in status.notes):
                    continue  # the record that it speaks of is not the one in force
                ready = {slot.slot for slot in status.slots if slot.phase == Phase.READY}
                if status.state is State.RUNNING and not ready >= set(
                    range(replicas.get((status.pipeline, status.record), 0))
                ):
                    yield f"{entry.key} says running, though not every slot is ready: {commit}"
