"""No restart in place without a cause: a Bento that ends and is started again under the same execution

    crashed                       by itself, or with its machine
    was wanted paused             between its beginning and the next one
    lost its lease or its grant   its host was cut off, frozen, replaced ..., or somebody damaged them
    was told to stop              as it must where it is paused, or where its session is over: the same causes

What schedulers suffer, users say of other pipelines, and becomes of streams, is no cause: a host that is heard keeps
what it has. The stream of heartbeats is the exception, and an accident to it only if the agent cannot answer in time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.states import Wanted
from tests.sim.machines import End, Machine
from tests.sim.moves import assignments_of
from tests.support.fake_executor import Run

if TYPE_CHECKING:
    from tests.sim.world import World

# Of a machine, its agent, or the connection of its heartbeats.
_CAUSES = (
    *("agent crash", "agent frozen", "state lost", "all traces lost", "second agent", "host crash", "host replaced"),
    *("host cut off", "heartbeats cut off", "store down", "store frozen", "lease damaged", "grant damaged"),
    *("connection down", "connection frozen", "lost requests", "lost acknowledgements", "late writes"),
)
_BRIEFLY = ("agent crash", "agent frozen")
BRIEF_S = 2.0  # an agent that is away for no longer is back long before its lease ends
ECHO_S = 30.0  # from the end of a cause: a lease of 8 s, a stop that waits for a slow engine, the answer to a session


def restarts(world: World) -> Iterator[str]:
    """Restarts in place that nothing asked for."""
    rests = _rests(world)
    ends = {id(end.run): end for machine in _machines(world) for end in machine.engine.ends}
    last: dict[tuple[str, str, str], Run] = {}
    for run in world.ledger.runs:
        name = (run.host, run.store_id, run.execution)
        before, last[name] = last.get(name), run
        if before is None or id(before) not in ends:
            continue
        end = ends[id(before)]
        # From its beginning on: a stop may be asked for while it is being started.
        paused = any(at <= run.start and until >= before.start for at, until in rests.get(run.execution, ()))
        if end.how != "crashed" and not paused and not _caused(world, end):
            words = f"ended at {before.end:.3f} ({end.how}) and began again at {run.start:.3f}"
            yield f"{run.execution} on {run.host} {words}"


def _machines(world: World) -> Iterator[Machine]:
    yield from world.machines.values()
    for twin in world.twins.values():
        yield twin.machine


def _rests(world: World) -> dict[str, list[tuple[float, float]]]:
    """From when to when documents said of an execution that it is not to run: paused, to be stopped, or gone."""
    found: dict[str, list[tuple[float, float]]] = {}
    running: dict[str, set[str]] = {}
    for commit, host, document in assignments_of(world):
        if commit.anew:
            continue  # agents keep what they have
        items = () if document is None else document.executions
        now = {item.execution for item in items if item.wanted is Wanted.RUN}
        for execution in running.get(host, set()) - now:
            found.setdefault(execution, []).append((commit.at, math.inf))
        for execution in now & found.keys():
            at, until = found[execution][-1]
            found[execution][-1] = (at, min(until, commit.at))
        running[host] = now
    return found


def _caused(world: World, end: End) -> bool:
    """Whether something befell its host shortly before."""
    assert end.run.end is not None
    for fault in world.faults:
        if fault.kind in _BRIEFLY and fault.until - fault.at < BRIEF_S:
            continue
        concerned = [world.host_of(name) for name in fault.target.split(",")]
        here = not fault.target or world.host_of(end.run.host) in concerned
        if fault.kind in _CAUSES and here and fault.at <= end.run.end <= fault.until + ECHO_S:
            return True
    return False
