"""The shortest traces of the abstract model, as far as they can be brought about from outside: with the rules nothing
bad happens, and each scenario shows by what did happen that it is the one that is meant.

The model knows no clocks and may let anybody do nothing for any time; here cuts and freezes do that, at many instants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from shared.documents import HostIntent
from tests.sim.faults import FOREVER, Fault, Shape
from tests.sim.run import Result, simulate
from tests.sim.users import Users
from tests.sim.world import Directed, World

SEEDS = (1, 2, 4)
CUT_S = 8.0  # when a host is cut off, in all of them


@dataclass(frozen=True, slots=True)
class Trace:
    """Faults by their beginning and end; `stop`: when the pipeline is drafted, if it is."""

    faults: Sequence[Fault]
    stop: float | None = None


def play(trace: Trace, seed: int) -> tuple[Result, World]:
    """One exclusive pipeline, two hosts, one scheduler."""
    ends = [fault.until for fault in trace.faults]
    shape = Shape(schedulers=["s0"], hosts=["h0", "h1"], faults_s=max(ends) + 5.0, edit_gap_s=FOREVER)
    worlds: list[World] = []

    async def draft(users: Users) -> None:
        await users.edit("p0", status="draft")

    async def close(users: Users) -> None:
        await users.intend("h1", HostIntent(cordon=True))  # so that the pipeline begins on h0

    async def open_again(users: Users) -> None:
        await users.intend("h1", HostIntent())

    edits = [(CUT_S - 2.0, open_again), *([] if trace.stop is None else [(trace.stop, draft)])]
    directed = Directed(
        shape=shape,
        faults=trace.faults,
        kinds={"p0": "exclusive"},
        first=close,
        edits=edits,
    )
    result = simulate(seed, prepare=worlds.append, directed=directed)
    return result, worlds[0]


TRACES = {
    # A is cut off and another agent claims its name, is answered, and could confirm a stop of which it knows nothing.
    "V1: a second agent confirms a stop": Trace(
        [Fault(CUT_S, 40.0, "host cut off", "h0", how="held"), Fault(CUT_S + 0.5, 40.0, "second agent", "h0")],
        stop=CUT_S + 1.0,
    ),
    "V1, with lost state": Trace([Fault(CUT_S, CUT_S + 2.0, "all traces lost", "h0")], stop=CUT_S + 1.0),
    # The second agent lapses, and its next session has a predecessor of the same agent.
    "V2: the predecessor of the predecessor": Trace(
        [
            Fault(CUT_S, 45.0, "host cut off", "h0", how="held"),
            Fault(CUT_S + 0.5, 45.0, "second agent", "h0"),
            Fault(CUT_S + 5.0, CUT_S + 15.0, "host cut off", "h0~1", how="held"),
        ]
    ),
    # The tombstone on the key is that of another agent.
    "V3: somebody else's tombstone": Trace(
        [
            Fault(CUT_S, 42.0, "agent frozen", "h0"),
            Fault(CUT_S + 0.5, CUT_S + 9.0, "second agent", "h0"),
        ]
    ),
    # An agent that lost its memory renews a lease that its predecessor's runner must not follow.
    "V4: the lease of another session": Trace([Fault(CUT_S, CUT_S + 0.3, "all traces lost", "h0")]),
    "host cut off, both ways": Trace([Fault(CUT_S, 40.0, "host cut off", "h0", how="held")]),
    "host cut off, acknowledgements only": Trace([Fault(CUT_S, 40.0, "host cut off", "h0", how="deaf")]),
    "host cut off, requests only": Trace([Fault(CUT_S, 40.0, "host cut off", "h0", how="mute")]),
    "agent frozen": Trace([Fault(CUT_S, 40.0, "agent frozen", "h0", how="timers last")]),
    "back with an old assignment": Trace(
        [
            Fault(CUT_S, 32.0, "heartbeats cut off", "h0", how="held"),
            Fault(CUT_S, 42.0, "assignments cut off", "h0", how="held"),
        ]
    ),
    **{
        f"back {after:g} s after falling silent": Trace(
            [Fault(CUT_S, CUT_S + after, "host cut off", "h0", how="held")], stop=None
        )
        for after in (7.5, 8.0, 10.0, 11.5, 11.75, 12.0, 12.25, 12.5, 13.0)
    },
}


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES.keys())
def test_with_the_rules_it_is_safe(trace: Trace) -> None:
    for seed in SEEDS:
        result, world = play(trace, seed)
        assert not result.violations, result.report(lines=80)
        runs = world.ledger.runs
        assert any(run.host == "h0" and run.start < CUT_S for run in runs), "the host that suffers had the pipeline"
