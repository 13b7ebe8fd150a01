"""Runs that are written down: one pipeline, two hosts, and what goes wrong at which moment.

The pipeline begins on h0, so that it is on the host that suffers. A `Trace` is a list of faults by their times, or a
`script`, a coroutine that waits for what has happened and then lets the next thing go wrong: the interleavings of the
abstract model are a few milliseconds wide, and only so are they met whatever the small delays are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from shared.documents import Assignment, Heartbeat, decode
from shared.intents import HostIntent
from shared.keys import assign_key
from tests.sim.faults import FOREVER, Fault, Shape
from tests.sim.run import Result, simulate
from tests.sim.users import Users
from tests.sim.world import Directed, World

CUT_S = 8.0  # when a host is cut off, in all of them; the pipeline runs by then
OPEN_S = CUT_S - 2.0  # from then on the other host takes executions
SCRIPT_MAX_S = 150.0
WITHIN_S = 60.0  # everything that a script waits for happens, or it is not the script that is meant

Script = Callable[[World], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Trace:
    """Faults by their beginning and end; `stop`: when the pipeline is drafted, if it is. The rest is about h0."""

    faults: Sequence[Fault] = ()
    stop: float | None = None
    script: Script | None = None
    schedulers: int = 1
    driver: str = ""  # "" = any
    kind: str = "exclusive"  # of the pipeline
    drain_s: float = 0.05  # what a Bento takes to end
    verify_s: float = 0.03  # what a runner takes to start Bento
    boot_rate: float = 1.0
    settings: Callable[[World], None] = lambda _: None


def play(trace: Trace, seed: int) -> tuple[Result, World]:
    """One run of a trace; the seed makes the small delays."""
    ends = [fault.until for fault in trace.faults]
    shape = Shape(
        schedulers=[f"s{n}" for n in range(trace.schedulers)],
        hosts=["h0", "h1"],
        faults_s=max(ends, default=SCRIPT_MAX_S) + 5.0,
        edit_gap_s=FOREVER,
        drains={"h0": trace.drain_s},
        verify_s={"h0": trace.verify_s},
        boot_rates={"h0": trace.boot_rate},
    )
    worlds: list[World] = []

    def prepare(world: World) -> None:
        worlds.append(world)
        if trace.driver:
            world.machines["h0"].driver = trace.driver
        trace.settings(world)

    async def draft(users: Users) -> None:
        await users.edit("p0", status="draft")

    async def close(users: Users) -> None:
        await users.intend("h1", HostIntent(cordon=True))

    async def open_again(users: Users) -> None:
        await users.intend("h1", HostIntent())

    directed = Directed(
        shape=shape,
        faults=trace.faults,
        kinds={"p0": trace.kind},
        first=close,
        edits=[(OPEN_S, open_again), *([] if trace.stop is None else [(trace.stop, draft)])],
        script=trace.script,
    )
    result = simulate(seed, prepare=prepare, directed=directed)
    return result, worlds[0]


# --- what scripts are made of


async def when(world: World, happened: Callable[[], object], what: str, *, to_s: float = 0.001) -> None:
    """Wait for something, to a millisecond."""
    end = world.loop.time() + WITHIN_S
    while not happened():
        assert world.loop.time() < end, f"this never happened: {what}"
        await asyncio.sleep(to_s)


@asynccontextmanager
async def suffering(world: World, kind: str, target: str, how: str = "", amount: float = 0.0) -> AsyncIterator[None]:
    """A fault that lasts as long as the block."""
    fault = Fault(world.loop.time(), FOREVER / 2, kind, target, amount, how)
    world.faults.append(fault)
    await world.begin(fault)
    try:
        yield
    finally:
        await world.end(fault)
        world.faults[world.faults.index(fault)] = replace(fault, until=world.loop.time())


def document(world: World, host: str = "h0") -> Assignment:
    """What a host is told."""
    data = world.server.value(world.keys.control, assign_key(host))
    assert data is not None
    return decode(Assignment, data)


def heard(world: World, host: str = "h0") -> Heartbeat:
    """What lies under a host's key."""
    data = world.server.value(world.keys.hosts, host)
    assert data is not None
    return decode(Heartbeat, data)


def revision(world: World, host: str = "h0") -> int:
    """Of a host's key."""
    return world.server.streams[world.keys.hosts].last[host].revision


def runs(world: World, host: str) -> bool:
    """Whether the pipeline runs on a host now."""
    return any(run.host == host for run in world.ledger.running("p0", 0))


async def settled(world: World) -> None:
    """Wait until the pipeline runs on h0, and h1 could take it."""
    await world.clock.sleep(CUT_S)
    assert runs(world, "h0"), "the host that suffers has the pipeline"
